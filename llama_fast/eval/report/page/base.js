"use strict";
// Whatever goes wrong is shown, and can be read by a test.
const trouble = [];
function report(what) {
  trouble.push(String(what));
  const place = document.getElementById("trouble");
  place.hidden = false;
  place.textContent = "This page has a fault: " + trouble.join("; ");
}
addEventListener("error", (event) => report(event.message));
addEventListener("unhandledrejection", (event) => report(event.reason));
addEventListener("securitypolicyviolation", (event) => report("blocked " + event.violatedDirective));

const DATA = JSON.parse(document.getElementById("data").textContent);
const LETTERS = ["a", "b"];
const TWO = DATA.runs.length > 1;

const byId = (id) => document.getElementById(id);

// Text only ever becomes text nodes: what a model wrote is never read as HTML.
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  return fill(element, attributes, children);
}

function draw(name, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "style") Object.assign(element.style, value);
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// Names such as exact_match break after their signs, not inside their words.
function breakable(text) {
  return String(text).split(/(?<=[_,=\/:.+@])(?=[^\s_,=\/:.+@])/).flatMap((part, at) => (at ? [make("wbr"), part] : [part]));
}

const round = (value, digits) => value.toFixed(digits);
const grouped = (value) => value.toLocaleString("en");
const percent = (value) => (100 * value).toFixed(value > 0.0995 || value === 0 ? 0 : 1) + " %";

function scoreText(score, isPercent) {
  if (score === null) return "–";
  const digits = isPercent ? 1 : 3;
  if (score.stderr) return round(score.value, digits) + " ± " + round(score.stderr, digits);
  // Where all answers are equal, the standard error says nothing.
  const interval = score.interval ? ` (${score.interval.map((bound) => round(bound, digits)).join(" to ")})` : "";
  return round(score.value, digits) + interval;
}

const runName = (at) => (TWO ? LETTERS[at].toUpperCase() + ": " : "") + DATA.runs[at].name;
const runColour = (at) => `var(--${LETTERS[at]})`;

function legendItem(colour, text) {
  const item = make("span", { style: { color: colour } }, make("span", { class: "key" }), make("span", {}, text));
  return item;
}

// Charts are drawn in pixels, for letters of the same size everywhere; again when that changes.
const redraws = [];
let lastWidth = 0;
addEventListener("resize", () => {
  if (document.documentElement.clientWidth === lastWidth) return;
  lastWidth = document.documentElement.clientWidth;
  for (const redraw of redraws) redraw();
});
