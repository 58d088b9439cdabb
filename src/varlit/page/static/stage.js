// The pictures: they grow while they are drawn, and each scale can be looked at again.

const FRAME_MS = 150; // a fast model draws all scales in a blink; the eye wants to see them

// "01x01" as a person writes it; a raster scan has "row 01".
export function stepName(name) {
  return name.replace(/0*(\d+)/g, "$1").replace(/^(\d+)x/, "scale $1\u00d7");
}

function span(kind, text) {
  const made = document.createElement("span");
  made.className = kind;
  made.textContent = text;
  return made;
}

export class Stage {
  constructor(tiles, track, onSelect) {
    this.tiles = tiles;
    this.track = track;
    this.onSelect = onSelect;
    this.frames = [];
    this.selected = 0;
    this.shown = -1;
    this.lastTime = 0;
  }

  setScales(names) {
    this.track.replaceChildren(...names.map((name, k) => {
      const button = document.createElement("button");
      const label = document.createElement("b");
      const told = stepName(name);
      button.type = "button";
      button.disabled = true;
      button.title = `Look at ${told}`;
      button.setAttribute("aria-label", told);
      // A phone has room for one number.
      label.append(span("wide", told.replace("scale ", "")), span("narrow", /\d+/.exec(told)[0]));
      button.append(document.createElement("i"), label);
      button.addEventListener("click", () => this.look(k));
      const stop = document.createElement("li");
      stop.append(button);
      return stop;
    }));
  }

  begin(count) {
    this.frames = [];
    this.shown = -1;
    this.tiles.style.setProperty("--columns", Math.ceil(Math.sqrt(count)));
    this.tiles.classList.toggle("single", count === 1);
    this.tiles.replaceChildren(...Array.from({ length: count }, (_, i) => {
      const tile = document.createElement("button");
      tile.type = "button";
      tile.className = "tile";
      tile.setAttribute("aria-label", `Picture ${i + 1} of ${count}`);
      tile.addEventListener("click", () => this.select(i));
      return tile;
    }));
    for (const stop of this.track.children) {
      stop.className = "";
      stop.firstChild.disabled = true;
    }
    this.select(0);
  }

  async add(k, pictures) {
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches || document.hidden;
    const wait = isCalm ? 0 : FRAME_MS - (performance.now() - this.lastTime);
    if (wait > 0) await new Promise((go) => setTimeout(go, wait));
    this.lastTime = performance.now();
    this.frames[k] = pictures.map((text) => `data:image/png;base64,${text}`);
    const stop = this.track.children[k];
    stop.classList.add("done");
    stop.firstChild.disabled = false;
    this.look(k);
  }

  look(k) {
    this.shown = k;
    this.tiles.dataset.frame = k;
    this.frames[k].forEach((source, i) => {
      const picture = new Image();
      picture.alt = "";
      picture.src = source;
      const tile = this.tiles.children[i];
      // The new frame fades in over the old one, which is taken away under it.
      while (tile.children.length > 1) tile.firstChild.remove();
      tile.append(picture);
    });
    [...this.track.children].forEach((stop, i) => {
      stop.classList.toggle("shown", i === k);
      if (i === k) stop.firstChild.setAttribute("aria-current", "step");
      else stop.firstChild.removeAttribute("aria-current");
    });
  }

  select(i) {
    this.selected = i;
    [...this.tiles.children].forEach((tile, j) => tile.setAttribute("aria-pressed", i === j));
    this.onSelect(i);
  }

  // The selected picture at the scale that is looked at, as a data URL; null before the first.
  get picture() {
    return this.frames[this.shown]?.[this.selected] ?? null;
  }
}
