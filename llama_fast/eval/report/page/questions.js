// Questions lie compressed in the page, a block a task, and are unpacked when a task is looked at.
const unpacked = new Map();
const PAGE = 50;
let found = [];
let visible = 0;
let asking = 0;

function unpack(at) {
  if (!unpacked.has(at)) unpacked.set(at, read(DATA.questions[at]));
  return unpacked.get(at);
}

async function read(block) {
  const bytes = Uint8Array.from(atob(byId(block.block).textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const questions = await new Response(stream).json();
  for (const question of questions) {
    question.task = block.task;
    question.right = question.runs.map((run) => (run === null || run.score === null ? null : run.score >= 1));
    question.changed = TWO && isChanged(question);
  }
  return questions;
}

function isChanged(question) {
  const [a, b] = question.runs;
  if (!a || !b) return false;
  return a.score !== b.score || (question.options.length ? a.picked !== b.picked : a.output !== b.output);
}

const FILTERS = {
  all: ["all questions", () => true],
  right: ["right", (q) => q.right[0] === true],
  wrong: ["wrong", (q) => q.right[0] === false],
  rightB: ["right in B", (q) => q.right[1] === true],
  wrongB: ["wrong in B", (q) => q.right[1] === false],
  changed: ["changed", (q) => q.changed],
  won: ["won: wrong in A, right in B", (q) => q.right[0] === false && q.right[1] === true],
  lost: ["lost: right in A, wrong in B", (q) => q.right[0] === true && q.right[1] === false],
};

function showQuestions() {
  if (!DATA.questions.length) return;
  byId("questions").hidden = false;
  if (typeof DecompressionStream === "undefined") {
    byId("count").textContent = "This browser cannot unpack the questions; one of 2023 or later can.";
    return;
  }
  const total = DATA.questions.reduce((sum, block) => sum + block.shown, 0);
  byId("task").append(make("option", { value: "" }, `all tasks (${grouped(total)})`));
  for (const block of DATA.questions) byId("task").append(make("option", { value: block.task }, `${block.task} (${grouped(block.shown)})`));
  for (const [key, [words]] of Object.entries(FILTERS)) {
    if (!TWO && ["rightB", "wrongB", "changed", "won", "lost"].includes(key)) continue;
    byId("show").append(make("option", { value: key }, TWO && (key === "right" || key === "wrong") ? words + " in A" : words));
  }
  restore();
  let timer = 0;
  byId("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, 150); });
  byId("task").addEventListener("change", search);
  byId("show").addEventListener("change", search);
  byId("controls").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  byId("more").addEventListener("click", showMore);
  return search();
}

// What is looked for stands in the address, so that it can be passed on.
function restore() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const first = DATA.questions[0].task;
  byId("task").value = wanted.has("task") ? wanted.get("task") : first;
  if (byId("task").selectedIndex < 0) byId("task").value = first;
  byId("show").value = wanted.get("show") || "all";
  if (byId("show").selectedIndex < 0) byId("show").value = "all";
  byId("search").value = wanted.get("search") || "";
}

function remember() {
  const state = new URLSearchParams({ task: byId("task").value, show: byId("show").value, search: byId("search").value });
  try { history.replaceState(null, "", "#" + state); } catch { /* a page without an address */ }
}

function textOf(question) {
  if (!question.text) {
    const parts = [question.prompt, question.target, ...question.options, ...question.runs.map((run) => (run ? run.output : ""))];
    question.text = parts.join("\n").toLowerCase();
  }
  return question.text;
}

async function search(event) {
  const turn = ++asking;
  if (event) remember();
  const task = byId("task").value;
  const blocks = DATA.questions.map((block, at) => [block, at]).filter(([block]) => !task || block.task === task);
  byId("count").textContent = "Unpacking …";
  const questions = (await Promise.all(blocks.map(([, at]) => unpack(at)))).flat();
  if (turn !== asking) return;
  const passes = FILTERS[byId("show").value][1];
  const words = byId("search").value.toLowerCase().split(/\s+/).filter((word) => word);
  found = questions.filter((question) => passes(question) && words.every((word) => textOf(question).includes(word)));
  visible = 0;
  byId("list").replaceChildren();
  byId("list").dataset.found = found.length;
  const left = blocks.reduce((sum, [block]) => sum + block.total - block.shown, 0);
  byId("list").dataset.of = questions.length;
  byId("count").textContent = `${grouped(found.length)} of ${grouped(questions.length)} questions` +
    (left ? `; ${grouped(left)} more of the run are not in this page` : "");
  showMore();
}

function showMore() {
  const next = found.slice(visible, visible + PAGE);
  visible += next.length;
  byId("list").append(...next.map(questionItem));
  byId("more").hidden = visible >= found.length;
}

function mark(right) {
  const [sign, words, look] = right === null ? ["·", "no score", "soft"] : right ? ["✓", "right", "good"] : ["✗", "wrong", "bad"];
  return make("span", { class: "mark " + look, title: words, "aria-label": words }, sign);
}

function questionItem(question) {
  const item = make("details", { class: "question" },
    make("summary", {}, question.right.map(mark), make("span", { class: "text" }, question.title),
      make("span", { class: "id" }, `${byId("task").value ? "" : question.task + " "}#${question.id}`)));
  // Most are never opened.
  item.addEventListener("toggle", () => item.childElementCount < 2 && item.append(questionBody(question)));
  return item;
}

function cutNote(characters, where) {
  return characters ? make("div", { class: "note" }, `${grouped(characters)} characters cut ${where}`) : null;
}

// Examples and passages come before the question itself.
function promptParts(question) {
  const { start } = question;
  const own = make("pre", {}, question.prompt.slice(start));
  const cut = cutNote(question.cut, "before this");
  if (!start) return [cut, own];
  const before = make("details", {}, make("summary", { class: "soft" }, `${grouped(start + question.cut)} characters before the question`),
    cut, make("pre", {}, question.prompt.slice(0, start)));
  return [before, own];
}

function questionBody(question) {
  const body = make("div", {}, promptParts(question));
  if (question.options.length) body.append(...question.options.map((_, at) => optionItem(question, at)));
  else if (question.target) body.append(make("div", { class: "soft" }, "expected"), make("pre", {}, question.target));
  question.runs.forEach((run, at) => {
    const name = TWO ? make("strong", { class: "run-" + LETTERS[at] }, LETTERS[at].toUpperCase() + " ") : null;
    if (run === null) body.append(make("div", {}, name, make("span", { class: "soft" }, "not asked")));
    else if (!question.options.length) {
      body.append(make("div", {}, name, make("span", { class: "soft" }, "wrote")), make("pre", {}, run.output || "(nothing)"), cutNote(run.cut, "after this") || "");
      if (run.extracted !== run.output) body.append(make("div", { class: "soft" }, "taken as the answer"), make("pre", {}, run.extracted || "(nothing)"));
    }
    if (run && run.score !== null && run.score !== 0 && run.score !== 1) body.append(make("p", { class: "note" }, (TWO ? LETTERS[at].toUpperCase() + " " : "") + "score " + round(run.score, 3)));
  });
  return body;
}

function optionItem(question, at) {
  const item = make("div", { class: question.gold === at ? "option gold" : "option" },
    make("span", { class: "good", title: "the right option" }, question.gold === at ? "✓" : ""),
    make("span", {}, question.options[at]));
  const odds = make("span", { class: "odds" });
  item.append(odds);
  question.runs.forEach((run, which) => {
    if (!run || !run.odds) return;
    const look = TWO ? "run-" + LETTERS[which] : null;
    odds.append(make("div", { class: look, title: `log-probability ${round(run.logprobs[at], 3)} nats` },
      (run.picked === at ? "◀ " : "") + percent(run.odds[at])));
    item.append(make("div", { class: "lane" }, make("div", { class: "bar", style: { width: 100 * run.odds[at] + "%", background: runColour(which) } })));
  });
  return item;
}
