// The winner map over any two axes of one group.
(() => {
  const controls = document.getElementById("map-controls");
  if (!controls || !data.maps.length) return;
  let map = data.maps[0],
    [across, down] = map.start;
  const key = (value) => (typeof value === "number" ? count(value) : value);
  const ink = (hex) => {
    const [r, g, b] = [1, 3, 5]
      .map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
      .map((p) => (p <= 0.04045 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.2 ? "#111" : "#fff";
  };

  function controlsOf() {
    const axes = map.choice.map((axis) => [axis, map.titles[map.axes.indexOf(axis)]]);
    controls.replaceChildren(
      choice(
        "",
        data.maps.map((one, i) => [String(i), one.heading]),
        String(data.maps.indexOf(map)),
        (value) => {
          map = data.maps[Number(value)];
          [across, down] = map.start;
          controlsOf();
          draw();
        },
      ),
      choice("across", axes, across, (value) => {
        if (value === down) down = across;
        across = value;
        controlsOf();
        draw();
      }),
      choice("down", axes, down, (value) => {
        if (value === across) across = down;
        down = value;
        controlsOf();
        draw();
      }),
    );
  }

  function draw() {
    const [i, j] = [across, down].map((axis) => map.axes.indexOf(axis));
    const found = map.comparisons.filter((c) => c.at.every((value, k) => k === i || k === j || value === map.centre[k]));
    const values = (k) =>
      [...new Set(found.map((c) => c.at[k]))].sort((a, b) => (typeof a === "number" ? a - b : a < b ? -1 : 1));
    const columns = values(i),
      lines = values(j),
      legend = new Map();
    const cellOf = (x, y) => {
      const c = found.find((one) => one.at[i] === x && one.at[j] === y);
      if (!c) return make("td", { class: "empty", title: "not measured" }, "·");
      const places = c.ids.map((id) => rowOf.get(id)).filter((row) => row !== undefined);
      const title = places
        .map(
          (row) =>
            `${cell("implementation", row)}: ${form("ms", cell("median_ms", row))} (${digits(cell("ci_low_ms", row), 4)} to ${digits(cell("ci_high_ms", row), 4)})`,
        )
        .join("\n");
      if (c.tied.length) return make("td", { class: "tie", title }, "tie", make("small", {}, c.tied.join(", ")));
      const color = colorOf(c.winner);
      legend.set(c.winner, color);
      return make(
        "td",
        { title, style: `background:${color};color:${ink(color)}` },
        c.lead === null ? "alone" : form("times", c.lead),
        make("small", {}, c.winner),
      );
    };
    const title = (axis) => map.titles[map.axes.indexOf(axis)];
    document
      .getElementById("map")
      .replaceChildren(
        make(
          "thead",
          {},
          make("tr", {}, make("th", {}, ""), make("th", { colspan: columns.length || 1 }, title(across))),
          make("tr", {}, make("th", {}, title(down)), ...columns.map((x) => make("th", { scope: "col" }, key(x)))),
        ),
        make(
          "tbody",
          {},
          ...[...lines]
            .reverse()
            .map((y) => make("tr", {}, make("th", { scope: "row" }, key(y)), ...columns.map((x) => cellOf(x, y)))),
        ),
      );
    const at = map.axes
      .map((axis, k) => (k === i || k === j ? "" : SYMBOL[axis] ? `${SYMBOL[axis]}=${key(map.centre[k])}` : map.centre[k]))
      .filter(Boolean);
    document.getElementById("map-note").textContent =
      `At ${at.join(" ")}. ·: not measured.${map.cut ? ` ${count(map.cut)} more points are not in this page.` : ""}`;
    document
      .getElementById("map-legend")
      .replaceChildren(...[...legend.keys()].map((name) => make("span", { class: "chip" }, swatch(name), name)));
  }

  controlsOf();
  draw();
  darkScheme.addEventListener("change", draw);
  addEventListener("beforeprint", draw);
  addEventListener("afterprint", draw);
})();
