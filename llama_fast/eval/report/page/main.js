// Facts of the runs, and everything in order.
function showFacts() {
  const facts = DATA.runs.map((run, at) => {
    const list = make("dl", {}, run.facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    const part = make("div", {}, TWO ? make("h3", { class: "run-" + LETTERS[at] }, runName(at)) : null, list);
    if (run.command) part.append(make("p", { class: "note" }, "Reproduce it:"), make("pre", { class: "command" }, run.command));
    if (run.earlierCommands.length) {
      const commands = run.earlierCommands.map((command) => make("pre", { class: "command" }, command));
      part.append(make("p", { class: "note" }, "Other tasks are from earlier runs in this folder:"), ...commands);
    }
    if (run.notes.length) {
      part.append(make("h3", {}, "About the data"), make("ul", {}, run.notes.map((note) => make("li", {}, note))));
    }
    if (run.notScored.length) {
      part.append(make("h3", {}, "Not scored"), make("ul", {}, run.notScored.map(([name, why]) => make("li", {}, make("strong", {}, name), why ? ": " + why : ""))));
    }
    return part;
  });
  byId("facts").append(...facts);
}

async function start() {
  showFacts();
  showGroups();
  showBars();
  showComparison();
  showCalibration();
  byId("limits").append(...DATA.limits.map((limit) => make("li", {}, limit)));
  const questions = showQuestions();
  for (const section of document.querySelectorAll("main > section:not([hidden])")) {
    byId("nav").append(make("a", { href: "#" + section.id, onclick: (event) => { event.preventDefault(); section.scrollIntoView(); } }, section.querySelector("h2").textContent));
  }
  await questions;
  if (!trouble.length) document.documentElement.dataset.ready = "yes";
}

start();
