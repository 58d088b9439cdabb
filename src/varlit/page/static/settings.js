// The settings: from the controls, and to and from the address, so that a link repeats a picture.

const $ = (id) => document.getElementById(id);
const MAX_CHIPS = 12; // classes that are shown at once; more are searched
const NUMBERS = ["cfg_scale", "top_k", "top_p", "seed", "num_variants"];
const IN_ADDRESS = {
  cfg_scale: "guidance", top_k: "top-k", top_p: "top-p", num_variants: "variants",
};
const NO_CLASS = "unconditional"; // its label is null

// A raster scan grows row by row, and a guidance that rises would hardly reach its first ones.
export function isRaster(card) { return card.frames[0].startsWith("row"); }

export class Settings {
  // card: what the server says of the model
  constructor(card) {
    this.card = card;
    this.isSearched = card.num_classes > MAX_CHIPS;
    $("cfg_scale").max = Math.min(10, card.max_cfg_scale);
    $("num_variants").max = card.max_variants;
    $("top_k").max = card.max_top_k;
    for (const name of ["cfg_scale", "top_k", "top_p"]) $(name).value = card[name];
    $("guidance").value = isRaster(card) ? "constant" : "var";
    this.#showClasses();
    this.#choose(0);
    this.showNumbers();
    $("controls").addEventListener("input", () => this.showNumbers());
  }

  title(label) {
    return label === null ? NO_CLASS : this.card.class_titles[label] ?? `class ${label}`;
  }

  // What the server takes; a field that is empty is null, and the server says what is missing.
  read() {
    const label = this.#chosen();
    if (label === undefined) throw new Error($("class-hint").textContent);
    const given = {
      label, more_smooth: $("more_smooth").checked, guidance: $("guidance").value,
    };
    for (const name of NUMBERS) given[name] = $(name).value === "" ? null : +$(name).value;
    return given;
  }

  writeAddress(given) {
    const words = new URLSearchParams({ class: given.label ?? NO_CLASS });
    for (const name of NUMBERS) words.set(IN_ADDRESS[name] ?? name, given[name]);
    words.set("guidance-is", given.guidance);
    if (given.more_smooth) words.set("smooth", "1");
    history.replaceState(null, "", `#${words}`);
  }

  // Whether the address holds settings; they are taken over.
  readAddress() {
    const words = new URLSearchParams(location.hash.slice(1));
    if (!words.has("seed")) return false;
    this.#choose(this.#find(words.get("class") ?? "") ?? null);
    for (const name of NUMBERS) {
      const value = words.get(IN_ADDRESS[name] ?? name);
      if (value !== null) $(name).value = value;
    }
    const kind = words.get("guidance-is");
    if (["var", "constant"].includes(kind)) $("guidance").value = kind;
    $("more_smooth").checked = words.get("smooth") === "1";
    this.showNumbers();
    return true;
  }

  showNumbers() {
    for (const output of document.querySelectorAll("output")) {
      const name = output.htmlFor.value, none = $("guidance").value === "constant" ? 1 : 0;
      output.textContent = name === "cfg_scale" && +$(name).value === none ? "none" : $(name).value;
    }
  }

  #showClasses() {
    const labels = [...Array(this.card.num_classes).keys()];
    if (this.isSearched) {
      $("class-search").hidden = false;
      $("classes").replaceChildren(...labels.map((label) => new Option("", this.#option(label))));
      $("classes").append(new Option("", NO_CLASS));
      $("class").addEventListener("focus", () => $("class").select());
      $("class").addEventListener("input", () => this.#chosen());
    } else {
      const chips = [...labels, null].map((label) => this.#chip(label));
      $("class-chips").hidden = false;
      $("class-chips").querySelector(".chips").replaceChildren(...chips);
    }
  }

  #option(label) {
    if (label === null) return `${NO_CLASS}: any class`;
    return this.card.class_titles.length ? `${label} ${this.title(label)}` : `${label}`;
  }

  #chip(label) {
    const whole = document.createElement("label");
    const radio = document.createElement("input");
    const text = document.createElement("span");
    radio.type = "radio";
    radio.name = "class";
    radio.value = label ?? NO_CLASS;
    text.textContent = this.title(label);
    whole.classList.toggle("plain", label === null);
    whole.append(radio, text);
    return whole;
  }

  // A number, a name, a part of one, or "207 golden retriever"; undefined where none is meant.
  #find(text) {
    const word = text.trim().toLowerCase();
    if (["", NO_CLASS, "none"].includes(word)) return null;
    const number = /^\d+/.exec(word)?.[0];
    if (number && (word === number || this.#option(+number).toLowerCase() === word)) {
      return +number < this.card.num_classes ? +number : undefined;
    }
    const names = this.card.class_titles.map((name) => name.toLowerCase());
    const matches = [
      names.indexOf(word),
      names.findIndex((name) => name.startsWith(word)),
      names.findIndex((name) => name.includes(word)),
    ];
    return matches.find((label) => label >= 0);
  }

  #chosen() {
    if (!this.isSearched) {
      const value = document.querySelector("[name=class]:checked").value;
      return value === NO_CLASS ? null : +value;
    }
    const label = this.#find($("class").value);
    $("class-hint").textContent = label === undefined
      ? `no such class; a name, or a number in 0..${this.card.num_classes - 1}`
      : this.#option(label);
    return label;
  }

  #choose(label) {
    if (this.isSearched) {
      $("class").value = label === null ? NO_CLASS : this.#option(label);
      this.#chosen();
    } else {
      document.querySelector(`[name=class][value="${label ?? NO_CLASS}"]`).checked = true;
    }
  }
}
