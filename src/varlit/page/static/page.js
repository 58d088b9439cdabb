// The page: controls, one request at a time, and what comes back line by line.

import { Brush } from "/brush.js";
import { Settings, isRaster } from "/settings.js";
import { Stage, stepName } from "/stage.js";

const $ = (id) => document.getElementById(id);
const DOUBLE_CLICK_MS = 400;

let card = null; // what the server says of the model
let settings = null;
let running = null; // an AbortController while something is drawn
let pressed = 0; // when the button was, in ms
let drawn = null; // the settings of the pictures on the stage

const stage = new Stage($("tiles"), $("track"), () => {});
const brush = new Brush($("mask"), $("ring"));

function say(text) { $("status").textContent = text; }

function complain(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
  if (text) $("message").scrollIntoView({ block: "nearest" });
}

function mode() { return document.querySelector("[name=mode]:checked").value; }

function setMode(name) {
  document.querySelector(`[name=mode][value=${name}]`).checked = true;
  document.body.dataset.mode = name;
  nameButton();
}

// Drawing

function base64(dataUrl) { return dataUrl.slice(dataUrl.indexOf(",") + 1); }

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

async function ask(given, signal) {
  const response = await fetch("/api/draw", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(given),
    signal,
  });
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Error(answer.message ?? `the server answered ${response.status}`);
}

async function draw() {
  if (running || !card) return;
  complain("");
  const control = running = new AbortController();
  try {
    const given = settings.read();
    if (mode() === "edit") given.edit = edit();
    busy(true);
    $("link").hidden = "edit" in given; // an address holds no picture
    say("Waiting for the model");
    const response = await ask(given, control.signal);
    if (mode() === "draw") settings.writeAddress(given);
    await follow(lines(response), given);
  } catch (error) {
    if (control.signal.aborted) say("Stopped");
    else {
      say("");
      complain(error instanceof TypeError
        ? "The server does not answer; is varlit demo still running?" : error.message);
    }
  } finally {
    running = null;
    busy(false);
  }
}

async function follow(events, given) {
  const count = card.frames.length;
  let isWhole = false;
  for await (const event of events) {
    if (event.event === "waiting") say(`Waiting, ${event.ahead} ahead`);
    if (event.event === "error") throw new Error(event.message);
    if (event.event === "start") {
      drawn = given;
      say("Drawing");
      stage.begin(given.num_variants);
      $("empty").hidden = true;
      $("command").querySelector("code").textContent = event.command;
      $("command").hidden = false;
    }
    if (event.event === "frame") {
      await stage.add(event.frame, event.images);
      $("actions").hidden = false;
      say(`Drawing ${stepName(event.name)}, ${event.frame + 1} of ${count}`);
    }
    if (event.event === "done") {
      isWhole = true;
      const many = given.num_variants;
      say(`${many === 1 ? "One picture" : `${many} pictures`} in ${event.seconds.toFixed(2)} s`);
    }
  }
  if (!isWhole) throw new Error("The drawing broke off; is varlit demo still running?");
}

function busy(isBusy) {
  $("draw").classList.toggle("quiet", isBusy);
  document.body.classList.toggle("busy", isBusy);
  nameButton();
}

// One button draws and stops, so that the keyboard stays where it is.
function press() {
  if (!running) draw();
  else if (performance.now() - pressed > DOUBLE_CLICK_MS) running.abort();
  pressed = performance.now();
}

function nameButton() {
  const idle = mode() === "edit" ? "Draw the marked part" : "Draw";
  $("draw").textContent = running ? "Stop" : idle;
}

// Painting over

function edit() {
  if ($("source-picture").hidden) {
    throw new Error("Draw a picture first, or open one of yours; then paint over a part of it.");
  }
  return {
    image: base64($("source-picture").src),
    mask: base64(brush.png(card.side_px)),
    keep_rest: $("keep_rest").checked,
    hide_masked: $("hide_masked").checked,
    free_first_scale: $("free_first_scale").checked,
    refit_known: $("refit_known").checked,
  };
}

function paintOver(dataUrl) {
  $("source-picture").src = dataUrl;
  $("source-picture").hidden = false;
  $("no-source").hidden = true;
  $("easel").classList.remove("bare");
  brush.clear();
  setMode("edit");
}

// The middle of any picture at the side of the model; nothing larger is ever sent.
async function open(file) {
  complain("");
  try {
    const bitmap = await createImageBitmap(file);
    const side = Math.min(bitmap.width, bitmap.height);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = card.side_px;
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.fillStyle = "white";
    pen.fillRect(0, 0, card.side_px, card.side_px);
    // Cut first: what lies beyond the square would bleed into its edge while it is resized.
    const [x, y] = [bitmap.width, bitmap.height].map((length) => Math.floor((length - side) / 2));
    const square = await createImageBitmap(bitmap, x, y, side, side);
    pen.drawImage(square, 0, 0, card.side_px, card.side_px);
    paintOver(canvas.toDataURL("image/png"));
  } catch {
    complain("That file does not open as a picture.");
  }
}

function download(dataUrl, name) {
  const link = document.createElement("a");
  link.href = dataUrl;
  link.download = name;
  link.click();
}

async function copy(text, button, fallback) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    if (fallback) getSelection().selectAllChildren(fallback);
    button.textContent = fallback ? "Selected" : "Copy the address";
  }
  setTimeout(() => { button.textContent = before; }, 1400);
}

function wire() {
  $("controls").addEventListener("submit", (event) => { event.preventDefault(); press(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  $("dice").addEventListener("click", () => {
    $("seed").value = Math.floor(Math.random() * 2 ** 31);
  });
  for (const radio of document.querySelectorAll("[name=mode]")) {
    radio.addEventListener("change", () => setMode(mode()));
  }
  for (const radio of document.querySelectorAll("[name=tool]")) {
    radio.addEventListener("change", () => { brush.isErasing = radio.value === "eraser"; });
  }
  $("brush-size").addEventListener("input", () => brush.setSize($("brush-size").value / 100));
  $("clear").addEventListener("click", () => brush.clear());
  $("open").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) open($("file").files[0]);
    $("file").value = "";
  });
  $("easel").addEventListener("dragover", (event) => event.preventDefault());
  $("easel").addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  });
  $("paint").addEventListener("click", () => { if (stage.picture) paintOver(stage.picture); });
  $("save").addEventListener("click", () => {
    const name = settings.title(drawn.label).replace(/[^\w-]+/g, "-");
    if (stage.picture) download(stage.picture, `${name}-${drawn.seed + stage.selected}.png`);
  });
  $("save-source").addEventListener("click", () => {
    if ($("source-picture").hidden) return;
    download($("source-picture").src, "picture.png");
    download(brush.png(card.side_px), "mask.png");
  });
  $("copy").addEventListener("click", () => {
    const code = $("command").querySelector("code");
    copy(code.textContent, $("copy"), code);
  });
  $("link").addEventListener("click", () => copy(location.href, $("link")));
  window.addEventListener("hashchange", () => {
    if (!settings?.readAddress()) return;
    setMode("draw");
    draw();
  });
}

async function main() {
  wire();
  setMode("draw");
  $("easel").classList.add("bare");
  try {
    card = await (await fetch("/api/model")).json();
  } catch {
    complain("The server does not answer; is varlit demo still running?");
    return;
  }
  document.title = `${card.run} \u00b7 varlit`;
  $("run").textContent = card.run;
  const steps = isRaster(card) ? "rows" : "scales";
  $("facts").textContent = [
    `${card.side_px}\u00d7${card.side_px} px`, `${card.frames.length} ${steps}`,
    `${card.num_classes.toLocaleString("en")} classes`,
  ].join(" \u00b7 ");
  settings = new Settings(card);
  stage.setScales(card.frames);
  if (settings.readAddress()) draw();
}

main();
