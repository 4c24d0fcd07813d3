// The three drawings of the explorer, as SVG. Colours come from explorer.css.
const draw = (() => {
  const SIZE = 400; // of a plane, in its own units
  const [DATA, WINDOW] = [2, 2.8]; // half the width of the denoiser's plane, and of the sampler's

  const MIDDLE = { "text-anchor": "middle" };

  const scale = ([a, b], [low, high]) => (v) => low + ((high - low) * (v - a)) / (b - a);
  const tag = (name, attributes, words = "") => {
    const list = Object.entries(attributes).map(([key, value]) => `${key}="${value}"`);
    return `<${name} ${list.join(" ")}>${words}</${name}>`;
  };
  const text = (x, y, words, attributes = {}) => tag("text", { x, y, ...attributes }, words);
  const circle = (kind, [cx, cy], r, attributes = {}) =>
    tag("circle", { class: kind, cx: cx.toFixed(2), cy: cy.toFixed(2), r, ...attributes });
  const line = (kind, points) =>
    tag("polyline", { class: kind, points: points.map((p) => p.map((v) => v.toFixed(1))).join(" ") });
  const minus = (v) => String(v).replace("-", "−");
  const segment = (kind, [x1, y1], [x2, y2]) => tag("line", { class: kind, x1, y1, x2, y2 });

  // A square of the plane, and a point's place on it
  function plane(half) {
    const [x, y] = [scale([-half, half], [0, SIZE]), scale([-half, half], [SIZE, 0])];
    const at = ([a, b]) => [x(a), y(b)];
    const rules = [-1, 0, 1].flatMap((v) => [
      segment("rule", [x(v), 0], [x(v), SIZE]),
      segment("rule", [0, y(v)], [SIZE, y(v)]),
      text(x(v) + 4, SIZE - 6, minus(v), { class: "unit" }),
      ...(v ? [text(4, y(v) - 4, minus(v), { class: "unit" })] : []),
    ]);
    return { at, length: (v) => (v * SIZE) / (2 * half), rules };
  }

  // The point of the plane under a pointer
  function place(svg, event) {
    const box = svg.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [(2 * x - 1) * DATA, (1 - 2 * y) * DATA];
  }

  function denoiser(svg, { points, x, sigma, weights, denoised }) {
    const { at, length, rules } = plane(DATA);
    const parts = [...rules];
    if (denoised) {
      parts.push(circle("reach", at(x), Math.min(length(sigma), 4 * SIZE)));
      const heavy = points.map((y, i) => [weights[i], y]).filter(([w]) => w > 0.003);
      for (const [w, y] of heavy) parts.push(circle("weight", at(y), 3 + 15 * Math.sqrt(w)));
      parts.push(...shares(heavy.sort((a, b) => b[0] - a[0]), at));
    }
    parts.push(...points.map((y) => circle("datum", at(y), 3.5)));
    if (denoised) parts.push(...arrow(at(x), at(denoised)), circle("denoised", at(denoised), 5));
    parts.push(circle("x", at(x), 8), text(...at(x), "x", { class: "name", dy: 24 }));
    if (denoised) parts.push(text(...at(denoised), "D", { class: "name green", dy: 20 }));
    svg.innerHTML = parts.join("");
  }

  // The largest weights in per cent, where they do not cover one another
  function shares(heavy, at) {
    const told = [];
    for (const [w, y] of heavy) {
      const [a, b] = at(y);
      const free = told.every(([x, y]) => Math.abs(a - x) > 40 || Math.abs(b - y) > 20);
      if (w > 0.08 && free) told.push([a, b, w]);
    }
    return told.map(([a, b, w]) =>
      text(a, b - 10 - 15 * Math.sqrt(w), `${Math.round(100 * w)}%`, { class: "share" }));
  }

  function arrow([x, y], [a, b]) {
    const long = Math.hypot(a - x, b - y);
    if (long < 16) return [];
    const [u, v] = [(a - x) / long, (b - y) / long];
    const tip = [a - 7 * u, b - 7 * v];
    const foot = (side) => [tip[0] - 10 * u - 5 * side * v, tip[1] - 10 * v + 5 * side * u];
    return [segment("arrow", [x + 9 * u, y + 9 * v], tip), line("head", [foot(1), tip, foot(-1)])];
  }

  // The weight of each point against sigma, and where sigma stands
  function weights(svg, { sigma, sigmas, rows }) {
    const x = scale([Math.log(sigmas[0]), Math.log(sigmas.at(-1))], [42, 388]);
    const y = scale([0, 1], [112, 10]);
    const curve = (k) => sigmas.map((level, i) => [x(Math.log(level)), y(rows[i][k])]);
    const bottom = [0.01, 0.1, 1, 10].map((level) => text(x(Math.log(level)), 128, level, MIDDLE));
    const side = [0, 0.5, 1].flatMap((w) => [
      segment("rule", [42, y(w)], [388, y(w)]),
      text(36, y(w) + 4, `${100 * w}%`, { "text-anchor": "end" }),
    ]);
    const here = x(Math.log(sigma));
    svg.innerHTML = [
      ...side, ...bottom, text(215, 145, "noise level σ", MIDDLE),
      segment("reach", [here, 6], [here, 114]),
      ...rows[0].map((_, k) => line("curve", curve(k))),
    ].join("");
  }

  // Paths and samples in the window x / sqrt(1 + sigma^2), in which noise and data fit
  function sampler(svg, { points, paths, exact, shares, cloud, missed, kind }) {
    const { at, rules } = plane(WINDOW);
    const even = Math.min(13, 26 / Math.sqrt(points.length)); // radius of a point's fair share
    const rings = points.map((y, i) => circle("ring", at(y), even * Math.sqrt(shares[i] * points.length)));
    const wrong = (i) => (missed[i] ? " missed" : "");
    svg.innerHTML = [
      ...rules,
      ...exact.map((path) => line("exact", path.map(at))),
      ...paths.map((path, i) => line(`path ${kind}${wrong(i)}`, path.map(at))),
      ...points.map((y) => circle("datum", at(y), 3)),
      ...rings,
      ...cloud.map((y, i) => circle(`dot ${kind}${wrong(i)}`, at(y), 2.4)),
    ].join("");
  }

  // The dots alone, when they move
  function move(svg, cloud) {
    const { at } = plane(WINDOW);
    svg.querySelectorAll(".dot").forEach((dot, i) => {
      const [x, y] = at(cloud[i]);
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", y);
    });
  }

  // The first number of x against the time of the clock: what the solver itself sees
  function clock(svg, { schedule, times, paths, exact, kind, highest }) {
    const wide = svg.parentElement.clientWidth > 560;
    const [width, height] = [wide ? 800 : 400, 280];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const box = { left: 44, right: width - 14, top: 8, bottom: height - 46 };
    const first = schedule.time(highest);
    const tall = 2.6 * Math.max(...[highest, highest / 4, 1].map((sigma) => {
      return Math.hypot(1, sigma) * schedule.scale(schedule.time(sigma));
    }));
    const x = scale([first, 0], [box.left, box.right]);
    const y = scale([-tall, tall], [box.bottom, box.top]);
    const inside = (path) => path.filter(([t]) => t <= first * (1 + 1e-9));
    const at = ([t, v]) => [x(t), y(v)];
    const parts = [segment("rule", [box.left, y(0)], [box.right, y(0)])];
    for (const v of ticks(tall)) parts.push(text(box.left - 6, y(v) + 4, minus(v), { "text-anchor": "end" }));
    for (const path of exact) parts.push(line("exact", path.map(at)));
    for (const path of paths) {
      parts.push(line(`path ${kind}`, path.map(at)));
      parts.push(...inside(path).map((p) => circle(`stop ${kind}`, at(p), 2.2)));
    }
    const stops = times.filter((t) => t <= first * (1 + 1e-9));
    for (const t of stops) parts.push(segment(`tick ${kind}`, [x(t), box.bottom], [x(t), box.bottom + 6]));
    parts.push(...levels(schedule, highest, x, box.bottom + 21));
    const middle = (box.left + box.right) / 2;
    parts.push(text(middle, height - 6, "time of the clock, marked by its noise level σ", MIDDLE));
    svg.innerHTML = clipped(box, parts);
  }

  const ticks = (tall) => {
    const unit = [100, 50, 20, 10, 5, 2, 1].find((v) => v < 0.8 * tall);
    return [-unit, 0, unit];
  };

  // Curves beyond the highest level shown are cut at the frame
  const clipped = ({ left, right, top, bottom }, parts) => {
    const frame = tag("rect", { x: left, y: top, width: right - left + 4, height: bottom - top });
    const curves = parts.filter((part) => part.startsWith("<polyline"));
    const rest = parts.filter((part) => !part.startsWith("<polyline"));
    return tag("clipPath", { id: "explorer-frame" }, frame) +
      tag("g", { "clip-path": "url(#explorer-frame)" }, curves.join("")) + rest.join("");
  };

  function levels(schedule, highest, x, y) {
    const parts = [text(x(0), y, 0, MIDDLE)];
    let last = -Infinity;
    for (const sigma of [80, 60, 40, 20, 8, 6, 4, 2, 1.5, 1, 0.5, 0.2, 0.1, 0.05, 0.01]) {
      const here = x(schedule.time(sigma));
      if (sigma > highest || here - last < 34 || x(0) - here < 24) continue;
      parts.push(text(here, y, sigma, MIDDLE));
      last = here;
    }
    return parts;
  }

  return { denoiser, weights, sampler, move, clock, place };
})();
