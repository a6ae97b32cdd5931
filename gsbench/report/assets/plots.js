// Figures are drawn when they come near the window, and again when the scheme or the choice of implementations changes.
const figures = [...document.querySelectorAll("figure[data-view]")];
const drawn = new Set();
const PRINTED = 318; // pixels: half of a printed A4 or Letter page less margins
const KINDS = { curves, rows, stack, roof };

function draw(figure) {
  const view = data.views[Number(figure.dataset.view)],
    t = theme(),
    [traces, own] = KINDS[view.kind](view);
  const line = {
    gridcolor: t.grid,
    zeroline: false,
    linecolor: t.muted,
    tickcolor: t.muted,
    fixedrange: !matchMedia("(pointer: fine)").matches,
  };
  const layout = {
    height: 300,
    ...(printing ? { width: PRINTED } : { autosize: true }),
    showlegend: false,
    hovermode: "closest",
    dragmode: "zoom",
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: t.ink },
    hoverlabel: { bgcolor: t.paper, bordercolor: t.muted, font: { size: 12, color: t.ink }, align: "left" },
    ...own,
    xaxis: { ...line, ...own.xaxis },
    yaxis: { ...line, ...own.yaxis },
  };
  if (printing) layout.height *= 0.75;
  Plotly.react(figure.querySelector(".plot"), traces, layout, {
    responsive: true,
    displayModeBar: false,
    displaylogo: false,
  });
  drawn.add(figure);
}

function swatch(name) {
  const style = data.styles[name],
    svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", 26);
  svg.setAttribute("height", 12);
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(svg.namespaceURI, "line"),
    dash = { solid: "", dash: "7,3", dashdot: "7,3,2,3", dot: "2,3" }[style.dash] ?? style.dash.replace(/px/g, "");
  for (const [key, value] of Object.entries({
    x1: 0,
    x2: 26,
    y1: 6,
    y2: 6,
    stroke: colorOf(name),
    "stroke-width": style.width,
    "stroke-dasharray": dash,
  }))
    line.setAttribute(key, value);
  const dot = document.createElementNS(svg.namespaceURI, "circle");
  for (const [key, value] of Object.entries({ cx: 13, cy: 6, r: 4, fill: colorOf(name) })) dot.setAttribute(key, value);
  svg.append(line, dot);
  return svg;
}

function phases() {
  // what the parts of the bars of memory are
  const shape = (tag, attributes) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"),
      mark = document.createElementNS(svg.namespaceURI, tag);
    for (const [key, value] of Object.entries({ width: 12, height: 12 })) svg.setAttribute(key, value);
    for (const [key, value] of Object.entries(attributes)) mark.setAttribute(key, value);
    svg.append(mark);
    return svg;
  };
  const used = new Set(data.views.flatMap((view) => view.phases ?? []));
  const chip = (mark, name) => make("span", { class: "chip" }, mark, name);
  document.getElementById("phases")?.replaceChildren(
    ...Object.keys(data.phases)
      .filter((phase) => used.has(phase))
      .map((phase) => chip(shape("rect", { width: 12, height: 12, fill: data.phases[phase][theme().i] }), phase)),
    chip(shape("path", { d: "M6 1 L11 6 L6 11 L1 6 Z", fill: theme().ink }), "measured"),
  );
}

function legends() {
  phases();
  for (const group of document.querySelectorAll(".group")) {
    const names = [
      ...new Set([...group.querySelectorAll("figure")].flatMap((figure) => data.views[Number(figure.dataset.view)].names)),
    ];
    const order = Object.keys(data.styles);
    names.sort((a, b) => order.indexOf(a) - order.indexOf(b));
    const toggle = (name) => {
      if (!hidden.delete(name)) hidden.add(name);
      again();
    };
    group.querySelector(".legend:not(#phases)")?.replaceChildren(
      ...names.map((name) =>
        make(
          "button",
          {
            class: "chip",
            type: "button",
            "aria-pressed": String(!hidden.has(name)),
            onclick: () => toggle(name),
            ondblclick: () => {
              order.forEach((n) => hidden.add(n));
              hidden.delete(name);
              again();
            },
          },
          swatch(name),
          name,
        ),
      ),
      make(
        "button",
        {
          class: "all",
          type: "button",
          onclick: () => {
            hidden.clear();
            again();
          },
          disabled: !hidden.size,
        },
        "all",
      ),
    );
  }
}

function again() {
  legends();
  for (const figure of drawn) draw(figure);
}

const runs = [...new Set(figures.map((figure) => figure.dataset.run))];
if (runs.length > 1)
  document.getElementById("run-controls").append(
    choice("Plots of", [["", "all runs"], ...runs.map((run) => [run, run])], "", (run) => {
      for (const figure of figures) figure.hidden = run !== "" && figure.dataset.run !== run;
      for (const group of document.querySelectorAll(".group"))
        group.hidden = [...group.querySelectorAll("figure")].every((figure) => figure.hidden);
    }),
  );
legends();
const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries)
      if (entry.isIntersecting) {
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
  },
  { rootMargin: "600px" },
);
for (const figure of figures) watcher.observe(figure);
darkScheme.addEventListener("change", again);
addEventListener("beforeprint", () => {
  printing = true;
  legends();
  for (const figure of figures) if (!figure.hidden) draw(figure);
});
addEventListener("afterprint", () => {
  printing = false;
  again();
});
