// Reliability diagrams: accuracy against confidence, and how many questions had that confidence.
function showCalibration() {
  if (!DATA.calibration.length) return;
  byId("calibration").hidden = false;
  if (DATA.uncalibrated.length) byId("uncalibrated").textContent =
    `Without ${DATA.uncalibrated.join(", ")}: their options are texts, whose probabilities depend most on their lengths.`;
  const names = [...new Set(DATA.calibration.map((one) => one.task))];
  byId("calibrated").append(...names.map((name) => make("option", { value: name }, name)));
  byId("calibrated").addEventListener("change", drawCalibration);
  redraws.push(drawCalibration);
  drawCalibration();
}

function drawCalibration() {
  const found = DATA.calibration.filter((one) => one.task === byId("calibrated").value);
  byId("diagrams").replaceChildren(...found.map((one) => {
    const right = one.bins.reduce((sum, bin) => sum + bin.n * bin.accuracy, 0) / one.n;
    const sure = one.bins.reduce((sum, bin) => sum + bin.n * bin.confidence, 0) / one.n;
    const figure = make("figure", {},
      TWO ? make("div", { class: "run-" + LETTERS[one.run] }, breakable(runName(one.run))) : null,
      make("div", {}, make("strong", {}, `ECE ${round(100 * one.ece, 1)} %`),
        one.floor === undefined ? "" : make("span", {}, ` (calibrated: ${round(100 * one.floor, 1)} %)`),
        make("span", { class: "soft" }, ` · ${grouped(one.n)} questions, ${percent(right)} right at a mean confidence of ${percent(sure)}`)));
    return figure;
  }));
  // The columns have their width once they are in the page.
  const figures = byId("diagrams").querySelectorAll("figure");
  if (!TWO) byId("diagrams").append(...found.map(binTable));
  found.forEach((one, at) => figures[at].append(diagram(one, figures[at].clientWidth), ...(TWO ? [binTable(one)] : [])));
}

// The diagram's numbers.
function binTable(one) {
  const head = ["confidence (%)", "questions", "mean (%)", "right (%)"];
  return make("table", { class: "bins" },
    make("thead", {}, make("tr", {}, head.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, one.bins.map((bin) => make("tr", {},
      make("th", { scope: "row" }, `${Math.round(100 * bin.low)} to ${Math.round(100 * bin.high)}`),
      [grouped(bin.n), round(100 * bin.confidence, 1), round(100 * bin.accuracy, 1)].map((text) => make("td", {}, text))))));
}

function diagram(one, space) {
  const width = Math.max(240, Math.min(space, 520));
  const [left, top, side] = [38, 10, width - 48];
  const counts = top + side + 34;
  const height = counts + 52;
  const x = (share) => left + side * share;
  const y = (share) => top + side * (1 - share);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  svg.append(draw("title", {}, `Accuracy against confidence, ECE ${round(100 * one.ece, 1)} %`));
  for (let tick = 0; tick <= 1.001; tick += 0.25) {
    svg.append(draw("line", { x1: left, x2: left + side, y1: y(tick), y2: y(tick), stroke: "var(--line)" }));
    svg.append(draw("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end", class: "soft" }, String(Math.round(100 * tick))));
    svg.append(draw("text", { x: x(tick), y: top + side + 15, "text-anchor": "middle", class: "soft" }, String(Math.round(100 * tick))));
  }
  const most = Math.max(...one.bins.map((bin) => bin.n));
  for (const bin of one.bins) {
    const place = { x: x(bin.low) + 1, width: side * (bin.high - bin.low) - 2 };
    const words = `confidence ${percent(bin.confidence)}, right ${percent(bin.accuracy)}, ${grouped(bin.n)} questions`;
    svg.append(draw("rect", { ...place, y: y(bin.accuracy), height: side * bin.accuracy, fill: runColour(one.run), "fill-opacity": 0.75 }, draw("title", {}, words)));
    svg.append(draw("line", { x1: x(bin.confidence), x2: x(bin.confidence), y1: y(bin.accuracy), y2: y(bin.confidence), stroke: "var(--bad)", "stroke-width": 2 }));
    const tall = Math.max(1, (28 * bin.n) / most);
    svg.append(draw("rect", { ...place, y: counts + 28 - tall, height: tall, fill: "var(--soft)" }, draw("title", {}, words)));
  }
  svg.append(draw("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), stroke: "var(--soft)", "stroke-dasharray": "5 4" }));
  svg.append(draw("text", { x: left + side / 2, y: top + side + 29, "text-anchor": "middle", class: "soft" }, "confidence in the likeliest option (%)"));
  svg.append(draw("text", { x: left + 4, y: top + 12, class: "soft" }, "right (%)"));
  svg.append(draw("text", { x: left + side / 2, y: counts + 43, "text-anchor": "middle", class: "soft" }, `questions (most: ${grouped(most)})`));
  return svg;
}
