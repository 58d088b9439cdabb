"""Networks: autoencoder, quantizer, VQVAE, VAR, discriminator, and their configs and files."""
