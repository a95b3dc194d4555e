// Columns of the paper's table: radar and table, beside the rows that are chosen.
const chosen = new Set(DATA.paper ? DATA.paper.chosen : []);
const paperColour = (row) => `var(--p${[...chosen].sort((x, y) => x - y).indexOf(row) % 5})`;
const MOST_ROWS = 5;

function showGroups() {
  if (!DATA.paper || !DATA.columns.some((column) => column.scores.some((score) => score))) return;
  byId("groups").hidden = false;
  byId("source").textContent = DATA.paper.source;
  DATA.paper.rows.forEach((name, row) => {
    byId("rows").append(
      make("button", {
        type: "button",
        onclick: () => {
          if (chosen.has(row)) chosen.delete(row);
          else if (chosen.size < MOST_ROWS) chosen.add(row);
          redrawGroups();
          showBars();
        },
      }, name),
    );
  });
  redraws.push(redrawGroups);
  redrawGroups();
}

function redrawGroups() {
  [...byId("rows").children].forEach((button, row) => {
    button.setAttribute("aria-pressed", chosen.has(row));
    button.style.color = chosen.has(row) ? paperColour(row) : "";
    button.disabled = !chosen.has(row) && chosen.size >= MOST_ROWS;
  });
  byId("radar").replaceChildren(radar(byId("radar").clientWidth), paperLegend());
  byId("columns").replaceChildren(columnTable());
  byId("remarks").replaceChildren(...remarks());
}

const inRadar = () => DATA.columns.filter((column) => !column.safety);

function series() {
  const paper = [...chosen].sort((x, y) => x - y).map((row) => ({
    name: DATA.paper.rows[row],
    colour: paperColour(row),
    values: inRadar().map((column) => column.paper[row]),
    dashed: true,
  }));
  const own = DATA.runs.map((run, at) => ({
    name: runName(at),
    colour: runColour(at),
    values: inRadar().map((column) => (column.scores[at] ? column.scores[at].value : null)),
    dashed: false,
  }));
  return [...paper, ...own];
}

const paperLegend = () => make("div", { class: "legend" }, series().map((s) => legendItem(s.colour, s.name)));

function radar(space) {
  const columns = inRadar();
  const width = Math.max(260, Math.min(space, 520));
  const height = Math.round(width * 0.8);
  // Room for the longest names: those beside the circle, and those at 45 degrees.
  const radius = Math.min(width / 2 - 84, (width / 2 - 98) * Math.SQRT2, height / 2 - 36);
  const [cx, cy] = [width / 2, height / 2];
  const values = series().flatMap((s) => s.values).filter((value) => value !== null);
  const top = Math.max(20, Math.min(100, Math.ceil(Math.max(...values) / 20) * 20));
  const at = (axis, value) => {
    const angle = (2 * Math.PI * axis) / columns.length - Math.PI / 2;
    const length = (radius * Math.max(0, value)) / top;
    return [cx + length * Math.cos(angle), cy + length * Math.sin(angle)];
  };
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  svg.append(draw("title", {}, "Scores of the groups in percent"));
  for (let ring = top / 4; ring <= top; ring += top / 4) {
    const points = columns.map((_, axis) => at(axis, ring).join(",")).join(" ");
    svg.append(draw("polygon", { points, fill: "none", stroke: "var(--line)" }));
    const [x, y] = at(0, ring);
    svg.append(draw("text", { x: x + 3, y: y + 11, class: "soft" }, String(ring)));
  }
  columns.forEach((column, axis) => {
    const [x, y] = at(axis, top);
    svg.append(draw("line", { x1: cx, y1: cy, x2: x, y2: y, stroke: "var(--line)" }));
    svg.append(axisName(column.name, at(axis, top * (1 + 14 / radius)), cx, cy));
  });
  for (const one of series()) svg.append(...outline(one, at));
  return svg;
}

function axisName(name, [x, y], cx, cy) {
  const anchor = Math.abs(x - cx) < 4 ? "middle" : x > cx ? "start" : "end";
  const words = name.split(" ");
  const lines = words.length > 1 && name.length > 10 ? [words[0], words.slice(1).join(" ")] : [name];
  const first = y < cy - 4 ? y - 14 * (lines.length - 1) : y + 6;
  return draw("text", { "text-anchor": anchor }, lines.map((line, at) => draw("tspan", { x, y: first + 14 * at }, line)));
}

// A group that was not scored leaves a gap; it is not a zero.
function outline(one, at) {
  const n = one.values.length;
  const parts = [];
  if (one.values.every((value) => value !== null)) {
    const points = one.values.map((value, axis) => at(axis, value).join(",")).join(" ");
    parts.push(draw("polygon", { points, fill: one.colour, "fill-opacity": one.dashed ? 0 : 0.14, stroke: "none" }));
  }
  one.values.forEach((value, axis) => {
    if (value === null) return;
    const next = (axis + 1) % n;
    const [x, y] = at(axis, value);
    if (one.values[next] !== null && n > 2) {
      const [x2, y2] = at(next, one.values[next]);
      parts.push(draw("line", {
        x1: x, y1: y, x2, y2, stroke: one.colour,
        "stroke-width": one.dashed ? 1.5 : 2.5, "stroke-dasharray": one.dashed ? "5 4" : null,
      }));
    }
    parts.push(draw("circle", { cx: x, cy: y, r: one.dashed ? 2.5 : 4, fill: one.colour },
      draw("title", {}, `${one.name}: ${inRadar()[axis].name} ${round(value, 1)}`)));
  });
  return parts;
}

function columnTable() {
  const rows = [...chosen].sort((x, y) => x - y);
  const heads = [
    ...DATA.runs.map((_, at) => make("th", { scope: "col", class: TWO ? "run-" + LETTERS[at] : null }, TWO ? LETTERS[at].toUpperCase() : "this run")),
    ...rows.map((row) => make("th", { scope: "col", style: { color: paperColour(row) } }, DATA.paper.rows[row])),
  ];
  const table = make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "group (%)"), heads)));
  const body = make("tbody");
  for (const column of DATA.columns) {
    body.append(make("tr", {},
      make("th", { scope: "row" }, column.name, column.higherIsBetter === false ? " ↓" : "", column.mark ? " " + column.mark : "",
        make("div", { class: "levels" }, levelsText(column))),
      column.scores.map((score) => make("td", { title: score && score.note }, scoreParts(score, column.percent))),
      rows.map((row) => make("td", {}, column.paper[row] === null ? "–" : round(column.paper[row], 1)))));
  }
  table.append(body);
  return table;
}

// Value and error are two lines where there is no room for one.
function scoreParts(score, isPercent) {
  const [value, error] = scoreText(score, isPercent).split(/ (?=[±(])/);
  const star = score && score.note ? "*" : "";
  return error ? [make("span", {}, value), " ", make("span", {}, error + star)] : value + star;
}

function remarks() {
  const found = [];
  for (const column of DATA.columns) {
    column.scores.forEach((score, at) => {
      if (score && score.note) found.push("* " + (TWO ? LETTERS[at].toUpperCase() + ", " : "") + column.name + ": " + score.note);
    });
    for (const note of column.notes) found.push((column.mark ? column.mark + " " : "") + column.name + ": " + note);
  }
  return found.map((text) => make("li", {}, text));
}
