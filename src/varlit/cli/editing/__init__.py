"""`varlit edit`: from a photo and flags to the pictures that continue it."""
