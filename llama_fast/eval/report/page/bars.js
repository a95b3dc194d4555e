// A bar a task and run, with its confidence interval; ticks are the chosen rows of the paper.
function bar(scores, top, ticks, chance) {
  const lanes = scores.map((score, at) => {
    const lane = make("div", { class: "lane" });
    if (score) {
      const place = (value) => (100 * Math.max(0, Math.min(value, top))) / top + "%";
      lane.append(make("div", { class: "bar", style: { width: place(score.value), background: runColour(at) } }));
      if (score.interval) {
        const [low, high] = [Math.max(0, score.interval[0]), Math.min(top, score.interval[1])];
        lane.append(make("div", { class: "whisker", style: { left: place(low), width: (100 * (high - low)) / top + "%" } }));
      }
    }
    return lane;
  });
  const marks = ticks.map((tick) => make("div", {
    class: "tick", title: `${tick.name}: ${round(tick.value, 1)}`,
    style: { left: `${(100 * tick.value) / top}%`, background: tick.colour },
  }));
  const guess = chance ? [make("div", { class: "chance", title: `chance: ${round(chance, 1)}`, style: { left: `${(100 * chance) / top}%` } })] : [];
  return make("div", { class: "track" }, lanes, guess, marks);
}

// The score of guessing, and the points from each score to the human level, or to 100.
function levelsText(item) {
  if (item.chance === null || item.scores.every((score) => !score)) return "";
  const room = item.scores.map((score) => (score ? round(item.top - score.value, 1) : "–"));
  return `chance ${round(item.chance, 1)} · headroom ${room.join(" and ")}`;
}

function barRow(name, small, item, ticks, isHead) {
  const { scores, percent: isPercent } = item;
  // A score that is no share has a scale of its own, or none if it can be negative.
  const values = scores.filter((score) => score).map((score) => (score.interval ? score.interval[1] : score.value));
  const top = isPercent ? 100 : Math.max(...values, 1);
  const texts = scores.map((score, at) => make("div", { class: TWO ? "run-" + LETTERS[at] : null }, scoreText(score, isPercent)));
  return make("div", { class: isHead ? "row head" : "row" },
    make("div", { class: "name" }, breakable(name)),
    make("div", { class: "about" }, breakable(small)),
    bar(scores, top, ticks, item.chance),
    make("div", { class: "value" }, texts),
    make("div", { class: "levels" }, levelsText(item)));
}

// A group of tasks is a task that says how many are in it.
function taskRow(task) {
  const asked = task.asked.map((n) => (n === null ? "–" : grouped(n)));
  const tasks = task.tasks ? `${task.tasks.length} tasks · ` : "";
  const small = `${task.metric} · ${tasks}${[...new Set(asked)].join(" and ")} questions`;
  return barRow(task.name, small, task, [], Boolean(task.tasks));
}

// More tasks of one group, such as the 57 of MMLU, begin folded.
const MOST_OPEN = 12;

function showBars() {
  const parts = [];
  const used = new Set();
  if (TWO) parts.push(make("div", { class: "legend" }, DATA.runs.map((_, at) => legendItem(runColour(at), runName(at)))));
  for (const column of DATA.columns) {
    const tasks = DATA.tasks.filter((task) => task.column === column.name);
    if (!tasks.length) continue;
    tasks.forEach((task) => used.add(task));
    const ticks = [...chosen].filter((row) => column.paper[row] !== null).map((row) => ({
      name: DATA.paper.rows[row], value: column.paper[row], colour: paperColour(row),
    }));
    parts.push(barRow(column.name, "", column, ticks, true));
    parts.push(...groupedRows(tasks));
  }
  const others = DATA.tasks.filter((task) => !used.has(task));
  if (others.length && parts.length > 1) parts.push(make("h3", {}, "Other tasks"));
  parts.push(...groupedRows(others));
  if (DATA.paper && chosen.size && used.size) {
    const ticks = [...chosen].map((row) => legendItem(paperColour(row), DATA.paper.rows[row]));
    parts.push(make("div", { class: "legend" }, ticks));
  }
  byId("bars").replaceChildren(...parts);
}

// Each group in front of its tasks; of groups within groups, a task is below the smallest.
function groupedRows(tasks) {
  const names = new Set(tasks.map((task) => task.name));
  const groups = DATA.groups.filter((group) => group.tasks.every((name) => names.has(name)));
  const below = new Map(groups.map((group) => [group, []]));
  const alone = [];
  for (const task of tasks) {
    const around = groups.filter((group) => group.tasks.includes(task.name));
    around.sort((x, y) => x.tasks.length - y.tasks.length);
    (around.length ? below.get(around[0]) : alone).push(task);
  }
  return [...folded(alone), ...groups.flatMap((group) => [taskRow(group), ...folded(below.get(group))])];
}

function folded(tasks) {
  const rows = tasks.map(taskRow);
  const zeros = rows.length > 2 && tasks.every(isZero);
  if (rows.length <= MOST_OPEN && !zeros) return rows;
  return [make("details", { class: "folded" }, make("summary", {}, `${rows.length} tasks${zeros ? ", all 0.0" : ""}`), rows)];
}

// Seven bars of no length say no more than one line.
const isZero = (task) => task.percent && task.scores.every((score) => score && score.value === 0);

// Differences between the runs, with their intervals.
function showComparison() {
  if (!DATA.compared) return;
  byId("compared").hidden = false;
  byId("how").textContent = DATA.compared.how;
  const conditions = DATA.compared.conditions;
  byId("conditions").hidden = !conditions;
  if (conditions) byId("conditions").append(...breakable(conditions[0].toUpperCase() + conditions.slice(1)));
  const rows = [...DATA.compared.overall, ...DATA.compared.tasks];
  const reach = (percent) => Math.max(percent ? 1 : 0.01, ...rows.filter((row) => row.percent === percent)
    .flatMap((row) => [Math.abs(row.value), Math.abs(row.low), Math.abs(row.high)]));
  const reaches = { true: reach(true), false: reach(false) };
  const lines = DATA.compared.tasks.map((row) => forestRow(row, reaches[row.percent]));
  byId("forest").append(
    ...DATA.compared.overall.map((row) => forestRow(row, reaches[true])),
    ...(lines.length > MOST_OPEN ? [make("details", {}, make("summary", {}, `${lines.length} tasks`), lines)] : lines));
  byId("notices").append(...DATA.compared.notices.map((notice) => make("li", {}, notice)));
}

function forestRow(row, reach) {
  const digits = row.percent ? 1 : 3;
  const signed = (value) => (value < 0 ? "−" : "+") + round(Math.abs(value), digits);
  const place = (value) => 50 + (48 * value) / reach;
  const known = row.low !== null;
  const sure = known && (row.low > 0 || row.high < 0);
  const lane = make("div", { class: "lane" },
    make("div", { class: "zero", style: { left: "50%" } }),
    known ? make("div", { class: "whisker", style: { left: place(row.low) + "%", width: place(row.high) - place(row.low) + "%" } }) : "",
    make("div", { class: "point", style: { left: place(row.value) + "%", background: row.value < 0 ? runColour(0) : runColour(1) } }));
  const p = row.p < 0.001 ? "p < 0.001" : "p = " + round(row.p, 3);
  return make("div", { class: row.isOverall ? "row forest head" : "row forest" },
    make("div", { class: "name" }, breakable(row.task)),
    make("div", { class: "about" }, `${grouped(row.n)} questions, ${row.won} won, ${row.lost} lost`),
    make("div", { class: "track" }, lane),
    make("div", { class: "value" },
      make("div", { class: sure ? (row.value > 0 ? "good" : "bad") : null }, signed(row.value)),
      make("div", { class: "interval soft" }, known ? `${signed(row.low)} to ${signed(row.high)}` : "no interval"),
      make("div", { class: "p soft" }, p)));
}
