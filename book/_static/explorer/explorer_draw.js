// The three drawings of the explorer, as SVG. Colours come from explorer.css.
(() => {
  const svg = (id) => document.getElementById(`explorer-${id}`);
  const line = (points) => points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
  const scale = (from, to) => {
    const slope = (to[1] - to[0]) / (from[1] - from[0]);
    return (value) => to[0] + slope * (value - from[0]);
  };
  const text = (x, y, words, extra = "") => `<text x="${x}" y="${y}" ${extra}>${words}</text>`;

  // A grey picture of bytes, rows from below, more opaque where there is more
  const pictures = {};
  function picture(name, base64) {
    if (pictures[name]) return pictures[name];
    const bytes = atob(base64);
    const side = Math.sqrt(bytes.length);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    const image = context.createImageData(side, side);
    for (let i = 0; i < bytes.length; i++) {
      const at = ((side - 1 - Math.floor(i / side)) * side + (i % side)) * 4;
      image.data.fill(128, at, at + 3);
      image.data[at + 3] = 190 * (bytes.charCodeAt(i) / 255) ** 0.6;
    }
    context.putImageData(image, 0, 0);
    return (pictures[name] = canvas.toDataURL());
  }
  const put = (href, x, y, width, height) =>
    `<image href="${href}" x="${x}" y="${y}" width="${width}" height="${height}" preserveAspectRatio="none"/>`;
  function frame(element, width, height, label) {
    element.setAttribute("viewBox", `0 0 ${width} ${height}`);
    element.setAttribute("height", height);
    element.setAttribute("aria-label", label);
  }

  function paths({ data, shown, levels, state, name }) {
    const element = svg("paths");
    const width = element.parentElement.clientWidth;
    const height = 290;
    const box = { left: 40, right: width - 76, top: 8, bottom: height - 40 };
    const [low, high] = data.range;
    const along = scale([Math.log(high), Math.log(low)], [box.left, box.right - 24]);
    const x = (sigma) => (sigma > 0 ? along(Math.log(clamp(sigma, low, high))) : box.right);
    const y = scale([-data.tall, data.tall], [box.bottom, box.top]);
    const stops = [...levels, 0].map(x);
    const parts = [put(picture("heat", data.heat), box.left, box.top, box.right - 24 - box.left, box.bottom - box.top)];
    for (const path of data.exact.paths)
      parts.push(`<polyline class="explorer-truth" points="${line(path.map((v, i) => [x(data.exact.levels[i] ?? 0), y(v)]))}"/>`);
    for (const path of shown.paths) {
      const points = path.map((v, i) => [stops[i], y(v)]);
      parts.push(`<polyline class="explorer-line ${state.solver}" points="${line(points)}"/>`);
      for (const [a, b] of points) parts.push(`<circle class="explorer-dot ${state.solver}" cx="${a.toFixed(1)}" cy="${b.toFixed(1)}" r="2"/>`);
    }
    for (const stop of stops) parts.push(`<line class="explorer-tick ${state.solver}" x1="${stop}" x2="${stop}" y1="${box.bottom}" y2="${box.bottom + 7}"/>`);
    for (const sigma of [80, 10, 1, 0.1, 0.01]) parts.push(text(x(sigma), box.bottom + 20, sigma, 'text-anchor="middle"'));
    parts.push(text(box.right, box.bottom + 20, 0, 'text-anchor="middle"'));
    parts.push(text((box.left + box.right) / 2, height - 3, "noise level σ", 'text-anchor="middle"'));
    for (const v of [-2, 0, 2]) parts.push(text(box.left - 6, y(v) + 4, v, 'text-anchor="end"'));
    const middle = (box.top + box.bottom) / 2;
    parts.push(text(12, middle, "x₁ / its standard deviation", `text-anchor="middle" transform="rotate(-90 12 ${middle})"`));

    // The marginal at sigma = 0, on the same vertical axis
    const side = scale([0, 1.6], [box.right + 10, width - 2]);
    const at = (i) => y(((i / data.bins) * 2 - 1) * data.limit / data.spread);
    shown.density.forEach((value, i) =>
      parts.push(`<rect class="explorer-bar ${state.solver}" x="${side(0)}" y="${at(i + 1)}" width="${Math.min(side(value), width) - side(0)}" height="${at(i) - at(i + 1)}"/>`));
    parts.push(`<polyline class="explorer-truth" points="${line(data.density.map((v, i) => [side(v), at(i + 0.5)]))}"/>`);
    parts.push(text(width - 2, height - 3, "density of x₁", 'text-anchor="end"'));
    element.innerHTML = parts.join("");
    const reach = shown.paths.filter((path) => Math.abs(path.at(-1)) > 3).length;
    frame(element, width, height, `Eight paths of ${name} with ${state.n} steps, over the exact ones; ${reach ? `${reach} end far from all data` : "all end among the data"}.`);
  }

  function samples({ data, shown, state, name }) {
    const element = svg("samples");
    const size = Math.min(element.parentElement.clientWidth, 340);
    const x = scale([-data.limit, data.limit], [0, size]);
    const y = scale([-data.limit, data.limit], [size, 0]);
    if (!element.childElementCount)
      element.innerHTML = put(picture("plane", data.plane), 0, 0, "100%", "100%") + "<g></g><g></g>";
    const [lines, dots] = element.querySelectorAll("g");
    const ends = state.churn === "0" ? data.exact.ends : [];
    lines.innerHTML = ends.map(([a, b], i) =>
      `<line class="explorer-miss" x1="${x(shown.samples[i][0])}" y1="${y(shown.samples[i][1])}" x2="${x(a)}" y2="${y(b)}"/>`).join("");
    if (!dots.childElementCount) dots.innerHTML = shown.samples.map(() => '<circle r="2.6"/>').join("");
    shown.samples.forEach(([a, b], i) => {
      const dot = dots.children[i];
      dot.setAttribute("class", `explorer-sample ${state.solver}`);
      dot.setAttribute("cx", x(a));
      dot.setAttribute("cy", y(b));
    });
    const out = shown.samples.filter((p) => Math.max(...p.map(Math.abs)) >= data.limit - 1e-6).length;
    const where = out ? `${out} of them lie outside the picture and are drawn at its edge` : "all lie in the picture";
    frame(element, size, size, `Eighty samples by ${name} over three strokes of true density; ${where}.`);
  }

  function errors({ data, state, curve, here, kind }) {
    const element = svg("errors");
    const width = element.parentElement.clientWidth;
    const height = 230;
    const box = { left: 48, right: width - 8, top: 8, bottom: height - 40 };
    const log = (value) => Math.log10(value);
    const x = scale([log(3.5), log(330)], [box.left, box.right]);
    const y = scale([log(2e-4), log(4)], [box.bottom, box.top]);
    const at = ([calls, value]) => [x(log(calls)), y(log(clamp(value, 2e-4, 4)))];
    const parts = [];
    for (const value of [0.001, 0.01, 0.1, 1])
      parts.push(`<line class="explorer-rule" x1="${box.left}" x2="${box.right}" y1="${y(log(value))}" y2="${y(log(value))}"/>`, text(box.left - 6, y(log(value)) + 4, value, 'text-anchor="end"'));
    for (const value of [4, 10, 30, 100, 300]) parts.push(text(x(log(value)), box.bottom + 16, value, 'text-anchor="middle"'));
    parts.push(text((box.left + box.right) / 2, height - 4, "denoiser calls", 'text-anchor="middle"'));
    if (kind === "law") {
      const floor = y(log(data.floor));
      parts.push(`<rect class="explorer-floor" x="${box.left}" y="${floor}" width="${box.right - box.left}" height="${box.bottom - floor}"/>`);
      parts.push(text(box.right - 4, box.bottom - 6, "as good as samples of the truth", 'text-anchor="end"'));
    }
    const draw = (points, style) => parts.push(`<polyline class="explorer-curve ${style}" points="${line(points.map(at))}"/>`);
    for (const solver of ["euler", "heun", "dpm"]) draw(curve(solver), `${solver} ${solver === state.solver ? "chosen" : ""}`);
    if (state.churn !== "0") draw(curve(state.solver, "0"), `${state.solver} without`);
    const [a, b] = at(here);
    parts.push(`<circle class="explorer-here ${state.solver}" cx="${a}" cy="${b}" r="6"/>`);
    const names = [["euler", "Euler"], ["heun", "Heun"], ["dpm", "DPM++(2M)"]];
    if (state.churn !== "0") names.push([`${state.solver} without`, "no churn"]);
    names.forEach(([style, label], i) => {
      const top = box.top + 14 + 16 * i;
      parts.push(`<line class="explorer-curve chosen ${style}" x1="${box.right - 92}" x2="${box.right - 72}" y1="${top - 4}" y2="${top - 4}"/>`, text(box.right - 66, top, label));
    });
    element.innerHTML = parts.join("");
    const what = kind === "path" ? "root mean square distance of path ends from the exact ODE’s" : "sliced Wasserstein distance of the samples from the truth";
    frame(element, width, height, `The ${what}, data units, against denoiser calls, on logarithmic axes; ${Number(here[1].toPrecision(2))} at ${here[0]} calls for this choice.`);
  }

  window.explorer.draw = (view) => {
    if (svg("paths").parentElement.clientWidth < 200) return; // not laid out yet
    paths(view);
    samples(view);
    errors(view);
  };
})();
