// The bridge: from the categories to allocated, reserved, used and the card's end, as one bar and as a table.
"use strict";

function drawBridge(report, device, box, moment) {
  const held = breakdownAt(device, moment);
  const onCpu = !device.segments;
  const parts = partsOf(report).map((part, i) => ({ ...part, size: held.parts[i] }));
  const free = Math.max(0, device.capacity - held.used);
  const zoomed = device.capacity > 0 && held.used < 0.7 * device.capacity;
  const scale = Math.max(1, zoomed || !device.capacity ? held.used : Math.max(held.used, device.capacity));
  const percent = (size, whole = scale) => `${(100 * size) / whole}%`;

  const pieces = (some, whole) =>
    some
      .filter(({ size }) => size > 0)
      .map(({ key, name, size }) => {
        const about = (event) => tip.show(event.clientX, event.clientY, tipRow(key, name, size));
        const label =
          size > 0.09 * whole ? [element("b", {}, name.split(":")[0]), element("span", {}, sizeText(size))] : [];
        return element(
          "div",
          { class: `part ${key}`, style: { width: percent(size, whole) }, onmousemove: about, onmouseleave: tip.hide },
          label,
        );
      });
  const segments = pieces(parts, scale);
  /** What is allocated once more, where it is too narrow in the bar above to be read. */
  function closer() {
    if (!held.allocated || held.allocated > 0.25 * scale) return null;
    return [
      element("p", { class: "note closer" }, "What is allocated, drawn larger:"),
      element("div", { class: "bar" }, pieces(parts.slice(0, -3), held.allocated)),
    ];
  }
  if (!zoomed && free > 0) {
    const label = free > 0.09 * scale ? [element("b", {}, "free"), element("span", {}, sizeText(free))] : [];
    segments.push(element("div", { class: "part free", style: { width: percent(free) } }, label));
  }
  const bracket = (name, size) =>
    element(
      "div",
      { class: "bracket", style: { width: percent(size) } },
      element(
        "span",
        { class: size < 0.35 * scale ? "outside-label" : "" },
        `${name} `,
        element("b", {}, sizeText(size)),
      ),
    );
  const brackets = [bracket("allocated", held.allocated)];
  if (!onCpu) brackets.push(bracket("reserved", held.reserved));
  if (device.outside) brackets.push(bracket("used on the device", held.used));
  if (device.capacity && !zoomed) {
    brackets.push(bracket("the card", device.capacity));
    segments.push(element("div", { class: "card-end", style: { width: percent(device.capacity) } }));
  }

  const share = held.used / (device.capacity || 1);
  const card = zoomed
    ? [
        element(
          "div",
          { class: "card-bar", title: "The whole card" },
          element("div", { class: "card-used", style: { width: percent(share, 1) } }),
          element(
            "span",
            { class: "card-label" },
            `${shareText(held.used, device.capacity)} of the card's `,
            element("b", {}, sizeText(device.capacity)),
          ),
        ),
        zoomLines(share),
      ]
    : [];
  fill(
    box,
    element("div", { class: "bridge" }, card, element("div", { class: "bar" }, segments), brackets, closer()),
    sums(held, parts, device, onCpu),
  );
}

/** From the used part of the thin bar to the whole of the wide one. */
function zoomLines(share) {
  return shape(
    "svg",
    { class: "zoom-lines", viewBox: "0 0 100 10", preserveAspectRatio: "none" },
    shape("polygon", { points: `0,0 ${100 * share},0 100,10 0,10` }),
  );
}

function sums(held, parts, device, onCpu) {
  const line = (kind, mark, name, size, note) =>
    element(
      "tr",
      { class: kind },
      element("td", {}, mark),
      element("td", {}, name),
      element("td", { class: "number" }, sizeText(size)),
      element("td", { class: "number exact" }, bytesText(size)),
      element("td", { class: "note" }, note),
    );
  const share = (key, size) => [
    element("span", { class: "share" }, shareText(size, held.allocated)),
    element("span", { class: `share-bar ${key}`, style: { width: `${(160 * size) / (held.allocated || 1)}px` } }),
  ];
  const categories = parts
    .slice(0, -4)
    .map((part, i) => ({ ...part, ever: device.series.categories[i].some((size) => size > 0) }));
  const [slack, cached, pools, outside] = parts.slice(-4);
  const rows = categories
    .filter(({ ever }) => ever)
    .sort((a, b) => b.size - a.size)
    .map(({ key, name, size }) => line("", swatch(key), name, size, share(key, size)));
  rows.push(line("", swatch("slack"), onCpu ? "rounding" : slack.name, slack.size, share("slack", slack.size)));
  rows.push(
    line(
      "sum",
      "=",
      onCpu ? "held by tensors" : "allocated",
      held.allocated,
      onCpu ? "" : "torch.cuda.memory_allocated()",
    ),
  );
  if (!onCpu) {
    rows.push(line("", swatch("cached"), cached.name, cached.size, "freed blocks, and rests of segments"));
    if (device.pooled) {
      rows.push(line("", swatch("pools"), pools.name, pools.size, "private: free to nobody else"));
    }
    rows.push(line("sum", "=", "reserved", held.reserved, "torch.cuda.memory_reserved()"));
  }
  if (outside.size) {
    rows.push(line("", swatch("outside"), outside.name, outside.size, "and libraries, other processes"));
    const { nccl } = device;
    if (nccl && nccl.size !== null) rows.push(line("", "", nccl.name, nccl.size, nccl.note));
    rows.push(line("sum", "=", "used on the device", held.used, "what nvidia-smi shows"));
    if (nccl && nccl.size === null) {
      rows.push(element("tr", {}, element("td", {}, "+"), element("td", { colspan: 4 }, `${nccl.name}: ${nccl.note}`)));
    }
  }
  if (device.capacity) {
    rows.push(line("", swatch("free"), "free", Math.max(0, device.capacity - held.used), ""));
    rows.push(line("sum", "=", "the card", device.capacity, device.name));
  }
  return element("div", { class: "scroll" }, element("table", { class: "sums" }, element("tbody", {}, rows)));
}
