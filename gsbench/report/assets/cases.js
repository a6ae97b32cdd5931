// The table of all cases: filter, sort, pages, a strip of the raw samples in every row, the whole record on a click.
(() => {
  const table = document.getElementById("case-table");
  if (!table) return;
  const PAGE = 50,
    total = data.cases.id.length;
  const many = (name) => new Set(column(name).at ?? column(name)).size > 1;
  const number = (text) => (name, row) => {
    const x = cell(name, row);
    return x === null ? "" : text(x);
  };
  const plain = (name, row) => cell(name, row);
  const COLUMNS = [
    ["implementation", "implementation", plain, true],
    ["run", "run", plain, true, "many"],
    ["pass", "pass", plain, true],
    ...AXES.map((axis) => [axis, SYMBOL[axis], number(count)]),
    ["pattern", "pattern", plain, true, "many"],
    ["dtype", "dtype", plain, true, "many"],
    ["mode", "mode", plain, true, "many"],
    ["method", "method", plain, true, "many"],
    ["status", "status", plain, true],
    ["median_ms", "median ms", number((x) => digits(x, 4))],
    ["strip", "samples", null],
    ["ci_low_ms", "95 % from", number((x) => digits(x, 4))],
    ["ci_high_ms", "to", number((x) => digits(x, 4))],
    ["floor_ms", "floor ms", number((x) => digits(x, 4))],
    ["roof_share", "roof", number(FORMS.share)],
    ["peak_extra_bytes", "extra memory", number(FORMS.bytes)],
    ["modelled_extra_bytes", "modelled", number(FORMS.bytes)],
    ["layer_bytes", "layer", number(FORMS.bytes)],
    ["energy_mj", "mJ", number((x) => digits(x, 4))],
    ["flags", "flags", (name, row) => cell("reason", row) || cell("flags", row), true],
  ]
    .filter(([name, , , , when]) => when !== "many" || many(name))
    .filter(([name]) => !["peak_extra_bytes", "energy_mj"].includes(name) || column(name).some((x) => x !== null));
  const unprinted = new Set([
    "method",
    "ci_low_ms",
    "ci_high_ms",
    "floor_ms",
    "modelled_extra_bytes",
    "layer_bytes",
    "energy_mj",
  ]);
  const order = Object.keys(data.styles);
  let sort = ["", 1],
    page = 0,
    found = [];
  const picked = {};

  const TEXTS = ["implementation", "run", "pass", "pattern", "dtype", "mode", "method", "status"];
  const words = (row) =>
    [
      ...TEXTS.flatMap((name) => [cell(name, row), `${name}=${cell(name, row)}`]),
      cell("flags", row),
      cell("reason", row),
      ...AXES.flatMap((axis) => [`${SYMBOL[axis]}=${cell(axis, row)}`, `${axis}=${cell(axis, row)}`]),
    ].map((text) => text.toLowerCase());
  let known = null; // words of every row, made when a filter is first typed

  function search() {
    const terms = document
      .getElementById("filter")
      .value.toLowerCase()
      .replace(/,(?=\d)/g, "")
      .split(/\s+/)
      .filter(Boolean);
    if (terms.length && !known) known = Array.from({ length: total }, (_, row) => words(row));
    const fits = (term, row) =>
      term.includes("=") ? known[row].includes(term) : known[row].some((word) => word.includes(term));
    found = [];
    for (let row = 0; row < total; row++)
      if (
        Object.entries(picked).every(([name, value]) => !value || cell(name, row) === value) &&
        terms.every((term) => fits(term, row))
      )
        found.push(row);
    const [name, way] = sort;
    if (name) {
      const value =
        name === "implementation"
          ? (row) => order.indexOf(cell(name, row))
          : name === "strip"
            ? (row) => cell("samples", row)
            : (row) => cell(name, row);
      found.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null) || a - b;
        return (x < y ? -way : x > y ? way : 0) || a - b;
      });
    } else found.sort((a, b) => (cell("median_ms", a) === null) - (cell("median_ms", b) === null) || a - b);
    page = 0;
    show();
  }

  function strip(row) {
    const canvas = make("canvas", { role: "img", "aria-label": "raw samples" }),
      range = data.samples.of[row];
    if (!range) return "";
    const ratio = Math.max(2, devicePixelRatio || 1),
      w = 120,
      h = 20,
      [low, high] = range,
      span = high - low || 1,
      x = (ms) => 3 + ((w - 6) * (ms - low)) / span;
    canvas.width = w * ratio;
    canvas.height = h * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.fillStyle = faded(colorOf(cell("implementation", row)), 0.25);
    pen.fillRect(x(cell("ci_low_ms", row)), 0, Math.max(1, x(cell("ci_high_ms", row)) - x(cell("ci_low_ms", row))), h);
    pen.fillStyle = faded(colorOf(cell("implementation", row)), 0.5);
    values(row).forEach((ms, i) => {
      pen.beginPath();
      pen.arc(x(ms), 4 + ((i * 7) % (h - 8)), 1.5, 0, 7);
      pen.fill();
    });
    pen.fillStyle = theme().ink;
    pen.fillRect(x(cell("median_ms", row)) - 0.6, 0, 1.2, h);
    canvas.title = `${range[2]} samples from ${form("ms", low)} to ${form("ms", high)}`;
    return canvas;
  }

  const breakable = (name) => name.split(/(?<=[/_])/).flatMap((part) => [part, make("wbr")]);

  function values(row) {
    const [low, high] = data.samples.of[row];
    return Array.from(atob(data.samples.bytes[row]), (c) => low + ((high - low) * c.charCodeAt(0)) / 255);
  }

  function open(tr, row) {
    if (tr.nextSibling?.classList.contains("open")) {
      tr.nextSibling.remove();
      return;
    }
    const list = make("dl"),
      box = make("div", {}, make("b", {}, cell("implementation", row)), list);
    const more = [
      ["block", cell("block", row)],
      ["finished", cell("finished", row)],
      ["configuration", cell("config", row)],
    ].filter(([, value]) => value);
    for (const [what, value] of [...facts(row), ...more]) list.append(make("dt", {}, what), make("dd", {}, value));
    tr.after(make("tr", { class: "open" }, make("td", { class: "detail", colspan: COLUMNS.length }, box)));
    if (!data.samples.of[row]) return;
    const plot = make("div"),
      y = values(row),
      t = theme(),
      name = cell("implementation", row);
    box.append(make("p", { class: "note" }, "Raw samples in the order they were taken, ms"), plot);
    Plotly.newPlot(
      plot,
      [{ y, mode: "markers", marker: { color: colorOf(name), size: 4 }, hovertemplate: "%{y:.4g} ms<extra></extra>" }],
      {
        height: 170,
        margin: { l: 54, r: 12, t: 6, b: 26 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { size: 11, color: t.ink },
        xaxis: { gridcolor: t.grid, zeroline: false },
        yaxis: { gridcolor: t.grid, zeroline: false },
        shapes: [
          {
            type: "line",
            xref: "paper",
            x0: 0,
            x1: 1,
            y0: cell("median_ms", row),
            y1: cell("median_ms", row),
            line: { color: t.ink, width: 1 },
          },
        ],
      },
      { responsive: true, displayModeBar: false },
    );
  }

  function show() {
    const rows = found.slice(page * PAGE, (page + 1) * PAGE);
    table.tHead.replaceChildren(
      make(
        "tr",
        {},
        ...COLUMNS.map(([name, label, , left]) =>
          make(
            "th",
            {
              scope: "col",
              class: `${left ? "label" : ""} ${unprinted.has(name) ? "unprinted" : ""}`,
              "aria-sort": sort[0] === name && (sort[1] > 0 ? "ascending" : "descending"),
              "data-column": name,
            },
            make(
              "button",
              {
                type: "button",
                onclick: () => {
                  sort = [name, sort[0] === name ? -sort[1] : 1];
                  search();
                },
              },
              label + (sort[0] === name ? (sort[1] > 0 ? " ▲" : " ▼") : ""),
            ),
          ),
        ),
      ),
    );
    table.tBodies[0].replaceChildren(
      ...rows.map((row) => {
        const tr = make("tr", {
          class: "case",
          tabindex: 0,
          onclick: () => open(tr, row),
          onkeydown: (event) => {
            if (event.key === "Enter") open(tr, row);
          },
        });
        for (const [name, , text, left] of COLUMNS)
          tr.append(
            make(
              "td",
              {
                title: name === "flags" ? text(name, row) : null,
                class:
                  [
                    left ? "label" : "",
                    unprinted.has(name) ? "unprinted" : "",
                    name !== "flags" && left ? "short" : "",
                    name === "status" && cell("status", row) !== "ok" ? "failed" : "",
                  ]
                    .join(" ")
                    .trim() || null,
              },
              ...[text ? text(name, row) : strip(row)].flatMap((part) =>
                name === "implementation" ? breakable(part) : [part],
              ),
            ),
          );
        return tr;
      }),
    );
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    document.getElementById("case-count").textContent =
      `${count(found.length)} of ${count(total)} cases` + (pages > 1 ? `, page ${page + 1} of ${pages}` : "");
    const step = (by) => {
      page += by;
      show();
    };
    document
      .getElementById("pager")
      .replaceChildren(
        ...(pages > 1
          ? [
              make("button", { type: "button", disabled: page === 0, onclick: () => step(-1) }, "previous"),
              `page ${page + 1} of ${pages}`,
              make("button", { type: "button", disabled: page + 1 >= pages, onclick: () => step(1) }, "next"),
            ]
          : []),
      );
  }

  for (const name of ["run", "implementation", "pass", "dtype", "mode", "status"]) {
    const of = column(name).of.slice();
    if (of.length < 2) continue;
    if (name === "implementation") of.sort((a, b) => order.indexOf(a) - order.indexOf(b));
    document.getElementById("case-controls").append(
      choice(name, [["", "all"], ...of.map((value) => [value, value])], "", (value) => {
        picked[name] = value;
        search();
      }),
    );
  }
  document.getElementById("case-controls").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("filter").addEventListener("input", search);
  search();
  darkScheme.addEventListener("change", show);
  addEventListener("beforeprint", show);
  addEventListener("afterprint", show);
})();
