"use strict";
// One card per slide, built from slides.json and updated during a run. Slide names are only set as text.
const PAUSE_MS = 2000;
const form = document.getElementById("choose"), shown = new Map();
let slides = [];

const units = {
  objects: (n) => n.toLocaleString("en").replaceAll(",", "\u202f"),
  objects_per_mm2: (n) => Math.round(n).toLocaleString("en").replaceAll(",", "\u202f"),
  tissue_mm2: (n) => `${n.toPrecision(3)} mm\u00b2`,
  seconds: (n) => (n < 90 ? `${Math.round(n)} s` : n < 5400 ? `${Math.round(n / 60)} min` : `${(n / 3600).toFixed(1)} h`),
};

function card(slide) {
  const node = document.getElementById("card").content.firstElementChild.cloneNode(true);
  node.querySelector("h2").textContent = slide.key;
  return node;
}

function setText(node, text) {
  node.textContent = text;
  node.hidden = !text;
}

function fill(node, slide) {
  const link = node.querySelector("a"), picture = node.querySelector("img");
  if (slide.name) link.href = `slide/${slide.name}/`;
  if (slide.name && slide.picture) {
    const source = `slide/${slide.name}/thumbnail.jpg?v=${encodeURIComponent(slide.finished)}`;
    if (picture.getAttribute("src") !== source) picture.src = source;
    picture.alt = `${slide.key}, objects tinted green`;
  }
  picture.hidden = !(slide.name && slide.picture);
  picture.nextElementSibling.hidden = !picture.hidden;
  const state = node.querySelector(".state");
  state.textContent = slide.state;
  state.classList.toggle("complete", slide.state === "complete");
  state.classList.toggle("active", slide.state === "in progress");
  node.querySelector(".flags").textContent = slide.flags.join(", ");
  for (const value of node.querySelectorAll("dd")) {
    const number = slide[value.dataset.of];
    value.textContent = number === null ? "\u2013" : units[value.dataset.of](number);
  }
  const progress = node.querySelector("progress");
  progress.hidden = slide.state === "complete" || slide.blocks === null;
  if (!progress.hidden) [progress.max, progress.value] = [slide.blocks, slide.blocks_done];
  progress.title = progress.hidden ? "" : `${slide.blocks_done} of ${slide.blocks} blocks`;
  setText(node.querySelector(".cause"), slide.cause && slide.stage ? `at ${slide.stage}: ${slide.cause}` : slide.cause);
  setText(node.querySelector("pre"), slide.cure);
}

function arrange() {
  const { words, state, order } = form.elements;
  const name = order.value.replace("-", ""), largest = order.value.startsWith("-");
  const matching = slides.filter((slide) => slide.key.toLowerCase().includes(words.value.toLowerCase()) && (!state.value || slide.state === state.value));
  matching.sort((a, b) => {
    const [x, y] = [a[name], b[name]];
    if (!largest) return String(x).localeCompare(String(y), "en", { numeric: true }) || a.key.localeCompare(b.key);
    return (x === null) - (y === null) || y - x || a.key.localeCompare(b.key);
  });
  const nodes = matching.map((slide) => shown.get(slide.key));
  const now = document.getElementById("cards");
  if (nodes.length !== now.children.length || nodes.some((node, at) => now.children[at] !== node)) now.replaceChildren(...nodes);
}

function update(found) {
  slides = found;
  const keys = new Set(slides.map((slide) => slide.key));
  for (const key of shown.keys()) if (!keys.has(key)) shown.delete(key);
  for (const slide of slides) {
    if (!shown.has(slide.key)) shown.set(slide.key, card(slide));
    fill(shown.get(slide.key), slide);
  }
  const states = [...new Set(slides.map((slide) => slide.state))].sort(), choice = form.elements.state;
  if ([...choice.options].slice(1).map((option) => option.value).join() !== states.join()) {
    const before = choice.value;
    choice.replaceChildren(choice.options[0], ...states.map((state) => new Option(state)));
    choice.value = states.includes(before) ? before : "";
  }
  const done = slides.filter((slide) => slide.state === "complete").length;
  document.getElementById("lead").textContent = `${done} of ${slides.length} slides complete`;
  arrange();
}

async function poll() {
  try {
    const answer = await fetch("slides.json");
    if (answer.ok) update((await answer.json()).slides);
  } catch {
    document.getElementById("lead").textContent = "Connection lost. Start overtile view again.";
  }
  setTimeout(poll, PAUSE_MS);
}

form.addEventListener("input", arrange);
form.addEventListener("submit", (event) => event.preventDefault());
poll();
