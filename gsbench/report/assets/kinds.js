// A view as Plotly takes it: each kind is a function of the view's data that returns [traces, layout].
const hidden = new Set(); // implementations that the reader switched off

const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); // Plotly reads tags
const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

function hover(name, id, lead) {
  const row = rowOf.get(id),
    lines = row === undefined ? [["case", "beyond those that this page holds"]] : facts(row);
  return (
    `<b>${safe(cut(name, 60))}${lead ? `: ${lead}` : ""}</b><br>` +
    lines.map(([what, value]) => `${what}: ${safe(cut(String(value), 90))}`).join("<br>")
  );
}

function logTicks(low, high, most) {
  const span = high / low;
  const steps =
    span < 2.2
      ? [1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]
      : span < 8
        ? [1, 1.5, 2, 3, 5, 7]
        : span < 500
          ? [1, 2, 5]
          : [1];
  let ticks = [];
  for (let n = -9; n < 16; n++)
    for (const step of steps) if (step * 10 ** n >= low && step * 10 ** n <= high) ticks.push(step * 10 ** n);
  const every = Math.ceil(ticks.length / most);
  return ticks.filter((_, i) => i % every === 0);
}

function logAxis(low, high, text, most = 9) {
  const pad = Math.max(1.06, (high / low) ** 0.05),
    ticks = logTicks(low / pad, high * pad, most);
  return { type: "log", range: [Math.log10(low / pad), Math.log10(high * pad)], tickvals: ticks, ticktext: ticks.map(text) };
}

function marker(name, size) {
  const style = data.styles[name];
  return {
    color: colorOf(name),
    symbol: style.symbol,
    size: size ?? (style.width > 2 ? 10 : 9),
    line: { color: theme().paper, width: 0.8 },
  };
}

// The axis of a sweep: its values where they were measured, or names side by side.
function sweptAxis(view, ends) {
  const near = view.x.at.length > 9 ? Math.ceil(view.x.at.length / 9) : 1;
  const x = {
    title: { text: view.x.title, standoff: 6 },
    tickvals: view.x.at.filter((_, i) => i % near === 0),
    ticktext: view.x.labels.filter((_, i) => i % near === 0).map((text) => safe(text).replace(/ /g, "<br>")),
  };
  if (view.x.log) Object.assign(x, { type: "log" });
  else if (!view.lines) x.showgrid = false;
  if (!view.x.log) x.range = [ends[0] - (view.lines ? 0.3 : 0.5), ends[1] + (view.lines ? 0.3 : 0.5)];
  return x;
}

function curves(view) {
  const traces = [];
  const lows = []; // ends of the intervals: what the axis must hold
  const highs = [];
  const word = (x) =>
    form(view.form, x)
      .replace(/(\.\d*?)0+×/, "$1×")
      .replace(".×", "×")
      .replace(/ m[sJ]/, "");
  const shown = view.series.filter((one) => !hidden.has(one.name));
  for (const { points } of shown)
    for (const [, , low, high] of points) {
      lows.push(low);
      highs.push(high);
    }
  if (view.reference) {
    lows.push(view.reference);
    highs.push(view.reference);
  }
  const ends = [Math.min(...view.x.at), Math.max(...view.x.at)];
  if (view.reference) {
    const room = view.lines ? 0 : 0.5;
    traces.push({
      x: [ends[0] - room, ends[1] + room],
      y: [view.reference, view.reference],
      mode: "lines",
      hoverinfo: "skip",
      line: { color: theme().muted, width: 1.3 },
    });
  }
  if (view.floor) {
    const ys = view.floor.points.map((p) => p[1]);
    traces.push({
      x: view.floor.points.map((p) => p[0]),
      y: ys,
      mode: "lines",
      text: ys.map(() => view.floor.name),
      hovertemplate: "%{text}<extra></extra>",
      line: { color: theme().muted, width: 1.8, dash: "dot" },
    });
    if (lows.length) lows.push(Math.max(Math.min(...ys), Math.min(...lows) / 20));
  }
  for (const fit of view.fits)
    if (!hidden.has(fit.name))
      traces.push({
        x: fit.points.map((p) => p[0]),
        y: fit.points.map((p) => p[1]),
        mode: "lines",
        hoverinfo: "skip",
        line: { color: colorOf(fit.name), width: 1, dash: "dot" },
      });
  for (const { name, points } of [...shown].sort((a, b) => data.styles[a.name].layer - data.styles[b.name].layer)) {
    const [x, y, low, high] = [0, 1, 2, 3].map((i) => points.map((p) => p[i])),
      style = data.styles[name];
    if (view.lines && points.length > 1)
      traces.push({
        x: [...x, ...[...x].reverse()],
        y: [...low, ...[...high].reverse()],
        mode: "lines",
        line: { width: 0 },
        fill: "toself",
        fillcolor: faded(colorOf(name), 0.22),
        hoverinfo: "skip",
      });
    traces.push({
      x,
      y,
      mode: view.lines ? "lines+markers" : "markers",
      marker: marker(name),
      line: { color: colorOf(name), width: style.width, dash: style.dash },
      error_y: view.lines
        ? undefined
        : {
            type: "data",
            symmetric: false,
            array: high.map((h, i) => h - y[i]),
            arrayminus: low.map((l, i) => y[i] - l),
            width: 0,
            thickness: 2,
          },
      text: points.map((p) =>
        hover(
          name,
          p[4],
          view.reference ? `${form(view.form, p[1])} (${form(view.form, p[2])} to ${form(view.form, p[3])})` : "",
        ),
      ),
      hovertemplate: "%{text}<extra></extra>",
    });
  }
  return [
    traces,
    {
      xaxis: sweptAxis(view, ends),
      yaxis: lows.length ? logAxis(Math.min(...lows), Math.max(...highs), word) : {},
      shapes: view.lines
        ? []
        : view.x.at.slice(1).map((at) => ({
            type: "line",
            x0: at - 0.5,
            x1: at - 0.5,
            yref: "paper",
            y0: 0,
            y1: 1,
            line: { color: theme().grid, width: 1 },
          })),
      margin: { l: 54, r: 12, t: 8, b: view.lines ? 50 : view.x.labels.some((text) => text.includes(" ")) ? 50 : 30 },
    },
  ];
}

const broken = (name) => (innerWidth < 600 || printing ? safe(name).replace("/", "/<br>") : safe(cut(name, 40)));
const rowsAxis = (names) => ({
  tickvals: names.map((_, i) => i),
  ticktext: names.map(broken),
  range: [names.length - 0.4, -0.6],
  automargin: true,
  showgrid: false,
});
const rowsHeight = (names) => 60 + names.length * (innerWidth < 600 || printing ? 36 : 27);

function rows(view) {
  const shown = view.rows.filter((row) => !hidden.has(row.name)),
    traces = [],
    names = shown.map((row) => row.name);
  const values = shown
    .flatMap((row) => [row.low, row.high, ...(row.floor ? [row.floor] : [])])
    .concat(view.reference ? [view.reference] : []);
  shown.forEach((row, y) => {
    const text = [hover(row.name, row.id)],
      hovertemplate = "%{text}<extra></extra>";
    if (row.floor)
      traces.push({
        x: [row.floor],
        y: [y],
        mode: "markers",
        marker: { symbol: "line-ns", size: 13, line: { color: theme().muted, width: 2 } },
        text: ["floor"],
        hovertemplate,
      });
    traces.push({
      x: [row.value],
      y: [y],
      mode: "markers",
      marker: marker(row.name, 11),
      error_x: {
        type: "data",
        symmetric: false,
        array: [row.high - row.value],
        arrayminus: [row.value - row.low],
        width: 0,
        thickness: 3,
      },
      text,
      hovertemplate,
    });
  });
  const shapes = view.reference
    ? [{ type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, line: { color: theme().muted, width: 1.3 } }]
    : [];
  const notes = shown.map((row, y) => ({
    x: Math.log10(row.high),
    y,
    text: form(view.form, row.value),
    showarrow: false,
    xanchor: "left",
    xshift: 9,
    font: { size: 11 },
  }));
  const low = Math.min(...values),
    high = Math.max(...values);
  return [
    traces,
    {
      xaxis: shown.length
        ? logAxis(low, high * Math.max(1.5, (high / low) ** 0.35), (x) => form(view.form, x).replace(/ m[sJ]/, ""), 5)
        : {},
      yaxis: rowsAxis(names),
      height: rowsHeight(names),
      annotations: notes,
      shapes,
      margin: { l: 20, r: 10, t: 8, b: 36 },
    },
  ];
}

function stack(view) {
  const shown = view.rows.filter((row) => !hidden.has(row.name)),
    names = shown.map((row) => row.name),
    at = names.map((_, i) => i);
  const traces = view.phases.map((phase, i) => ({
    type: "bar",
    orientation: "h",
    y: at,
    x: shown.map((row) => row.model[i]),
    width: 0.62,
    marker: { color: data.phases[phase][theme().i] },
    text: shown.map((row) => `<b>${phase}: ${form("bytes", row.model[i])}</b><br>${hover(row.name, row.id)}`),
    hovertemplate: "%{text}<extra></extra>",
    textposition: "none",
  }));
  const seen = shown.map((row, y) => [row, y]).filter(([row]) => row.measured);
  if (seen.length)
    traces.push({
      y: seen.map(([, y]) => y),
      x: seen.map(([row]) => row.measured),
      mode: "markers",
      marker: { symbol: "diamond", size: 9, color: theme().ink, line: { color: theme().paper, width: 1 } },
      text: seen.map(
        ([row]) =>
          `<b>measured ${form("bytes", row.measured)}, model ${form(
            "bytes",
            row.model.reduce((a, b) => a + b, 0),
          )}</b><br>${hover(row.name, row.id)}`,
      ),
      hovertemplate: "%{text}<extra></extra>",
    });
  const most = Math.max(
      1,
      ...shown.map((row) =>
        Math.max(
          row.measured ?? 0,
          row.model.reduce((a, b) => a + b, 0),
        ),
      ),
    ),
    unit = 2 ** (10 * Math.min(3, Math.floor(Math.log2(most) / 10)));
  const step = [0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500].find((s) => s * unit * 4 >= most) ?? 1000,
    ticks = [0, 1, 2, 3, 4].map((i) => i * step * unit).filter((t) => t <= most * 1.05);
  return [
    traces,
    {
      barmode: "stack",
      xaxis: { range: [0, most * 1.08], tickvals: ticks, ticktext: ticks.map((t) => (t ? form("bytes", t) : "0")) },
      yaxis: rowsAxis(names),
      height: rowsHeight(names),
      margin: { l: 20, r: 14, t: 8, b: 32 },
    },
  ];
}

function roof(view) {
  const shown = view.series.filter((one) => !hidden.has(one.name)),
    every = view.series.flatMap((one) => one.points);
  const low = Math.min(...every.map((p) => p[0])) / 1.5,
    high = Math.max(...every.map((p) => p[0])) * 1.5,
    knee = view.flops / view.bandwidth;
  const line = [low, ...(low < knee && knee < high ? [knee] : []), high],
    at = line.map((x) => Math.min(view.flops, view.bandwidth * x));
  const floors = shown.flatMap((one) => one.points.map((p) => [p[0], p[2]]));
  const traces = [
    {
      x: line,
      y: at,
      mode: "lines",
      line: { color: theme().ink, width: 1.6 },
      text: line.map(() => `${digits(view.bandwidth / 1e9, 4)} GB/s, ${form("flops", view.flops)}FLOP/s, measured`),
      hovertemplate: "%{text}<extra></extra>",
    },
    {
      x: floors.map((p) => p[0]),
      y: floors.map((p) => p[1]),
      mode: "markers",
      hoverinfo: "skip",
      marker: { symbol: "line-ew", size: 8, line: { color: theme().muted, width: 1.6 } },
    },
    ...shown.map(({ name, points }) => ({
      x: points.map((p) => p[0]),
      y: points.map((p) => p[1]),
      mode: "markers",
      marker: marker(name),
      text: points.map((p) => hover(name, p[3])),
      hovertemplate: "%{text}<extra></extra>",
    })),
  ];
  const rates = every.flatMap((p) => [p[1], p[2]]).concat(at);
  const axis = logAxis(low, high, (x) => digits(x, 3), 8);
  return [
    traces,
    {
      xaxis: { ...axis, title: { text: "useful FLOPs a byte (fewest bytes)", standoff: 6 } },
      yaxis: logAxis(Math.min(...rates), Math.max(...rates), FORMS.flops),
      height: 380,
      margin: { l: 54, r: 12, t: 8, b: 50 },
    },
  ];
}
