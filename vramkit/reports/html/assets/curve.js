// An estimate's batch sizes: what each needs, with the cards of the catalogue as lines.
"use strict";

function drawCurve(report, box) {
  const { curve, cards, card } = report.prediction;
  const sizes = curve.map((point) => point.batch_size);
  const lowest = Math.min(...curve.map((point) => point.peak_allocated));
  const highest = Math.max(...curve.map((point) => point.used));
  const range = [Math.max(1, lowest / 1.3), highest * 1.45]; // logarithmic: cards are multiples of one another
  const chart = element("div", { class: "chart" });
  const legend = element(
    "div",
    { class: "legend" },
    element("span", {}, element("span", { class: "line-sample used" }), "used: peak reserved and CUDA context"),
    element("span", {}, element("span", { class: "line-sample allocated" }), "peak allocated"),
    element("span", {}, element("span", { class: "mark failure" }, "✕"), `does not fit ${card}`),
  );
  fill(box, chart, legend, table());

  const plot = new uPlot(
    {
      width: Math.max(200, chart.clientWidth),
      height: 320,
      legend: { show: false },
      padding: [12, 12, 0, 0],
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: {
        x: { time: false, distr: 3, log: 2, range: () => [sizes[0] / 1.15, sizes[sizes.length - 1] * 1.15] },
        y: { distr: 3, log: 2, range: () => range },
      },
      axes: [
        {
          font: FONT,
          stroke: colour("muted"),
          grid: { show: false },
          ticks: { show: false },
          splits: () => sizes,
          values: (_, ticks) => ticks.map(countText),
          label: "batch size",
          labelFont: FONT,
          labelSize: 22,
          size: 30,
        },
        {
          size: 72,
          space: 40,
          font: FONT,
          stroke: colour("muted"),
          splits: powers,
          values: (_, ticks) => ticks.map(sizeText),
          grid: { stroke: colour("grid"), width: 1 },
          ticks: { show: false },
        },
      ],
      series: [
        {},
        {
          stroke: colour("accent"),
          width: 2.5,
          points: { show: true, size: 8, fill: colour("ground"), stroke: colour("accent"), width: 2 },
        },
        { stroke: colour("category-5"), width: 2, dash: [6, 3], points: { show: false } },
      ],
      hooks: { drawAxes: [drawCards], draw: [drawMisfits], setCursor: [hover] },
    },
    [sizes, curve.map((point) => point.used), curve.map((point) => point.peak_allocated)],
    chart,
  );
  function powers() {
    const found = [];
    for (let size = 2 ** Math.ceil(Math.log2(range[0])); size <= range[1]; size *= 2) found.push(size);
    return found;
  }

  plot.over.addEventListener("mouseleave", () => tip.hide());

  function drawCards(u) {
    const { ctx, bbox } = u;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.font = FONT.replace("12", Math.round(11 * ratio));
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    const shown = cards.filter(({ memory }) => memory >= range[0] && memory <= range[1]);
    shown.sort((a, b) => (b.name === card) - (a.name === card)); // its label comes first
    const lines = shown.map(({ name, memory }) => ({ name, isOwn: name === card, y: u.valToPos(memory, "y", true) }));
    for (const { isOwn, y } of lines) {
      ctx.strokeStyle = colour(isOwn ? "alarm" : "muted");
      ctx.globalAlpha = isOwn ? 1 : 0.55;
      ctx.lineWidth = (isOwn ? 2 : 1) * ratio;
      ctx.setLineDash(isOwn ? [] : [3 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
    }
    ctx.globalAlpha = 1;
    const places = [];
    for (const { name, isOwn, y } of lines) {
      if (places.some((taken) => Math.abs(taken - y) < 14 * ratio)) continue;
      places.push(y);
      const text = name.replace("NVIDIA ", "");
      ctx.fillStyle = colour("ground");
      ctx.fillRect(bbox.left + 4 * ratio, y - 6 * ratio, ctx.measureText(text).width + 6 * ratio, 12 * ratio);
      ctx.fillStyle = colour(isOwn ? "alarm" : "muted");
      ctx.fillText(text, bbox.left + 7 * ratio, y + 4 * ratio);
    }
    ctx.restore();
  }

  function drawMisfits(u) {
    const { ctx } = u;
    ctx.save();
    ctx.font = FONT.replace("12", Math.round(16 * devicePixelRatio));
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.fillStyle = colour("alarm");
    for (const point of curve) {
      if (!point.fits) ctx.fillText("✕", u.valToPos(point.batch_size, "x", true), u.valToPos(point.used, "y", true));
    }
    ctx.restore();
  }

  function hover(u) {
    const { idx, left } = u.cursor;
    if (idx === null || idx === undefined || left < 0) return tip.hide();
    const point = curve[idx];
    const rect = u.over.getBoundingClientRect();
    tip.show(
      rect.left + left,
      rect.top + u.cursor.top,
      element("div", { class: "tip-title" }, `batch size ${countText(point.batch_size)}`),
      tipRow(null, "peak allocated", point.peak_allocated),
      tipRow(null, "peak reserved", point.peak_reserved),
      tipRow(null, "used", point.used),
      element("div", { class: "tip-note" }, point.fits ? `fits ${card}` : `does not fit ${card}`),
    );
  }

  function table() {
    return element(
      "div",
      { class: "scroll" },
      element(
        "table",
        { class: "curve-table" },
        headings(["batch size"], ["allocated"], ["reserved"], ["used"], ""),
        element(
          "tbody",
          {},
          curve.map((point) =>
            element(
              "tr",
              { class: point.batch_size === report.prediction.batch_size ? "own" : "" },
              [
                countText(point.batch_size),
                sizeText(point.peak_allocated),
                sizeText(point.peak_reserved),
                sizeText(point.used),
              ].map((text) => element("td", { class: "number" }, text)),
              element("td", { class: point.fits ? "" : "alarm" }, point.fits ? "fits" : "does not fit"),
            ),
          ),
        ),
      ),
    );
  }

  const resized = new ResizeObserver(() => {
    if (chart.clientWidth > 0 && chart.clientWidth !== plot.width)
      plot.setSize({ width: chart.clientWidth, height: 320 });
  });
  resized.observe(chart);
  return {
    destroy() {
      resized.disconnect();
      plot.destroy();
    },
  };
}
