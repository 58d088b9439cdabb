// The mask: painted by mouse, finger, pen or keyboard over the picture that is to change.

const INNER_PX = 512; // strokes are smooth, whatever the side of the model

export class Brush {
  constructor(canvas, ring) {
    this.canvas = canvas;
    this.ring = ring;
    this.isErasing = false;
    this.size = 0.22; // of the side
    this.at = [0.5, 0.5];
    this.last = null;
    canvas.width = canvas.height = INNER_PX;
    this.pen = canvas.getContext("2d");
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => { this.last = null; });
    }
    canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#follow();
  }

  setSize(size) {
    this.size = size;
    this.#follow();
  }

  clear() {
    this.pen.clearRect(0, 0, INNER_PX, INNER_PX);
  }

  // White where the picture is drawn anew, black elsewhere: the base64 text of a PNG.
  png(side) {
    const small = document.createElement("canvas");
    small.width = small.height = side;
    const pen = small.getContext("2d");
    pen.drawImage(this.canvas, 0, 0, side, side);
    const pixels = pen.getImageData(0, 0, side, side);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const value = pixels.data[i + 3] > 127 ? 255 : 0;
      pixels.data.set([value, value, value, 255], i);
    }
    pen.putImageData(pixels, 0, 0);
    return small.toDataURL("image/png");
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  #down(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.at = this.last = this.#place(event);
    this.#stroke(this.at, this.at);
    this.#follow();
  }

  #move(event) {
    this.at = this.#place(event);
    if (this.last) {
      this.#stroke(this.last, this.at);
      this.last = this.at;
    }
    this.#follow();
  }

  #key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in step) {
      const [dx, dy] = step[event.key];
      const far = event.shiftKey ? 0.1 : 0.025;
      const inside = (value) => Math.min(1, Math.max(0, value));
      this.at = [inside(this.at[0] + dx * far), inside(this.at[1] + dy * far)];
    } else if (event.key === " " || event.key === "Enter") {
      this.#stroke(this.at, this.at);
    } else {
      return;
    }
    event.preventDefault();
    this.#follow();
  }

  #stroke(from, to) {
    const pen = this.pen;
    pen.globalCompositeOperation = this.isErasing ? "destination-out" : "source-over";
    const accent = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    pen.strokeStyle = accent.trim();
    pen.lineWidth = this.size * INNER_PX;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(from[0] * INNER_PX, from[1] * INNER_PX);
    pen.lineTo(to[0] * INNER_PX + 0.01, to[1] * INNER_PX);
    pen.stroke();
  }

  #follow() {
    this.ring.style.left = `${this.at[0] * 100}%`;
    this.ring.style.top = `${this.at[1] * 100}%`;
    this.ring.style.width = this.ring.style.height = `${this.size * 100}%`;
  }
}
