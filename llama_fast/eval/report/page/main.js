// Facts of the runs, and everything in order.
function showFacts() {
  const facts = DATA.runs.map((run, at) => {
    const list = factList("facts", run.facts);
    const part = make("div", {}, TWO ? make("h3", { class: "run-" + LETTERS[at] }, runName(at)) : null, list);
    if (run.command) part.append(make("p", { class: "note" }, "Reproduce it:"), make("pre", { class: "command" }, breakable(run.command)));
    if (run.earlierCommands.length) {
      const commands = run.earlierCommands.map((command) => make("pre", { class: "command" }, breakable(command)));
      part.append(make("p", { class: "note" }, "Other tasks are from earlier runs in this folder:"), ...commands);
    }
    if (run.notes.length) {
      part.append(make("h3", {}, "About the data"), make("ul", {}, run.notes.map((note) => make("li", {}, breakable(note)))));
    }
    if (run.notScored.length) {
      part.append(make("h3", {}, "Not scored"), make("ul", {}, run.notScored.map(([name, why]) => make("li", {}, make("strong", {}, breakable(name)), why ? breakable(": " + why) : ""))));
    }
    if (run.technical.length) {
      part.append(make("details", {}, make("summary", {}, "Versions and hashes"), factList("technical", run.technical)));
    }
    return part;
  });
  byId("facts").append(...facts);
}

function factList(name, facts) {
  return make("dl", { class: name }, facts.map(([label, value]) => make("div", {}, make("dt", {}, breakable(label)), make("dd", {}, factText(value)))));
}

// A hash breaks into lines of equal length.
function factText(value) {
  if (!/^[0-9a-f]{32,}$/.test(value)) return breakable(value);
  return make("code", {}, value.match(/.{1,16}/g).flatMap((part) => [part, make("wbr")]));
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
