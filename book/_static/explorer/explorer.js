// The design-space explorer: choices on the left, what the package computed for them on
// the right. Nothing is simulated here: every number was written by book/_tools/explorer.py.
(() => {
  const { data } = window.explorer;
  const here = document.currentScript.src.replace(/[^/]*$/, "");
  const root = document.getElementById("explorer");

  // Choices: [name in the address, label, options as [value, label]]
  const rhos = data.grids.filter((g) => g.startsWith("edm-")).map((g) => g.slice(4));
  const groups = [
    ["levels", "Noise levels", [["edm", "EDM"], ["ve", "VE"], ["vp", "VP"], ["iddpm", "iDDPM"]]],
    ["clock", "Clock", [["edm", "σ = t"], ["ve", "σ = √t (VE)"], ["vp", "VP, scaled"]]],
    ["solver", "Solver", [["euler", "Euler"], ["heun", "Heun"], ["dpm", "DPM++(2M)"]]],
    ["churn", "Churn", data.churns.map((c) => [String(c), c ? `S_churn = ${c}` : "none"])],
    ["denoiser", "Denoiser", [["exact", "exact"], ["high", "wrong at high noise"], ["low", "wrong at low noise"]]],
    ["error", "Error shown", [["path", "of paths"], ["law", "of the distribution"]]],
  ];
  const sliders = [
    ["rho", "ρ of EDM’s levels", rhos],
    ["n", "Steps N", data.steps.map(String)],
  ];
  const start = { levels: "edm", rho: "7", clock: "edm", solver: "heun", n: "18", churn: "0", denoiser: "exact", error: "path" };
  const recipes = {
    VP: { levels: "vp", clock: "vp", solver: "euler" },
    VE: { levels: "ve", clock: "ve", solver: "euler" },
    iDDPM: { levels: "iddpm", clock: "edm", solver: "euler" },
    EDM: { levels: "edm", rho: "7", clock: "edm", solver: "heun" },
  };
  const state = { ...start };
  let advice = null; // the answer to the question asked last

  // Numbers
  const grid = (s) => (s.levels === "edm" ? `edm-${s.rho}` : s.levels);
  const mover = (s) => (s.solver === "dpm" ? "edm-dpm" : `${s.clock}-${s.solver}`);
  const file = (s) => `${s.denoiser}-${s.churn}`;
  const row = (s) => data.grids.indexOf(grid(s)) * data.movers.length + data.movers.indexOf(mover(s));
  const step = (s) => data.steps.indexOf(Number(s.n));
  const error = (kind, change = {}) => {
    const s = { ...state, ...change };
    return data.errors[file(s)][kind][step(s)][row(s)];
  };
  const kind = (s = state) => (s.churn === "0" ? s.error : "law");
  const calls = (n, solver) => (solver === "heun" ? 2 * n - 1 : Number(n));
  const number = (value) => (value === null ? "–" : String(Number(value.toPrecision(2))));

  // Words
  const solverNames = { euler: "Euler", heun: "Heun", dpm: "DPM++(2M)" };
  const levelNames = () => ({
    edm: `EDM’s levels with ρ = ${state.rho}`,
    ve: "VE’s levels (even in ln σ)",
    vp: "VP’s levels",
    iddpm: "iDDPM’s levels",
  })[state.levels];
  const clockNames = { edm: "in the clock σ = t", ve: "in VE’s clock", vp: "in VP’s clock" };
  const denoiserNames = {
    exact: "",
    high: `, with a denoiser that is off by ${data.denoisers.high[2]} above σ = ${data.denoisers.high[0]}`,
    low: `, with a denoiser that is off by ${data.denoisers.low[2]} for σ from ${data.denoisers.low[0]} to ${data.denoisers.low[1]}`,
  };
  function sentence() {
    const s = state;
    const clock = s.solver === "dpm" ? "in any clock" : clockNames[s.clock];
    const count = calls(s.n, s.solver);
    let text = `${solverNames[s.solver]} on ${s.n} of ${levelNames()}, ${clock} (${count} denoiser calls)`;
    text += `${s.churn === "0" ? "" : `, with S_churn = ${s.churn}`}${denoiserNames[s.denoiser]}: `;
    if (s.churn === "0") text += `paths end ${number(error("path"))} from where the exact ODE takes them; `;
    text += `the distribution of the samples is ${number(error("law"))} from the truth, `;
    text += `where perfect samples score ${number(data.floor)}.`;
    const more = data.steps[step(s) + 1];
    if (more) {
      const ratio = error(kind()) / error(kind(), { n: String(more) });
      const name = kind() === "path" ? "path error" : "distance from the truth";
      text += ratio >= 1
        ? ` With ${more} steps the ${name} is ${number(ratio)} times smaller.`
        : ` With ${more} steps the ${name} does not shrink.`;
    }
    return text;
  }

  const questions = {
    "What does ρ do?": [
      { levels: "edm", rho: "1", clock: "edm", solver: "heun", n: "18", churn: "0", denoiser: "exact", error: "path" },
      () => {
        const at = (rho) => number(error("path", { levels: "edm", rho, clock: "edm", solver: "heun", n: "18", churn: "0", denoiser: "exact" }));
        return `ρ decides where the steps are. With ρ = 1 they are even in σ: almost all lie far above the data, where paths are straight, and the last one jumps over everything that matters. Path errors of Heun with 18 steps: ${rhos.map((r) => `${at(r)} at ρ = ${r}`).join(", ")}. Move the slider and watch the dots wander towards low noise.`;
      },
    ],
    "Why is VE slow?": [
      { levels: "ve", clock: "ve", solver: "euler", n: "36", churn: "0", denoiser: "exact", error: "path" },
      () => {
        const base = { levels: "ve", solver: "euler", n: "36", churn: "0", denoiser: "exact" };
        const at = (change) => number(error("path", { ...base, ...change }));
        return `It is the clock, not the levels. In σ = √t a path is bent even where it is straight in σ, so Euler’s tangents miss: 36 steps err by ${at({ clock: "ve" })}. The same 36 levels in the clock σ = t err by ${at({ clock: "edm" })}, and with Heun by ${at({ clock: "edm", solver: "heun" })}. Change the clock and compare.`;
      },
    ],
    "When does churn help?": [
      { levels: "edm", rho: "7", clock: "edm", solver: "heun", n: "144", churn: String(data.churns.at(-1)), denoiser: "high", error: "law" },
      () => {
        const base = { levels: "edm", rho: "7", clock: "edm", solver: "heun", n: "144" };
        const most = String(data.churns.at(-1));
        const pair = (denoiser) => `${number(error("law", { ...base, denoiser, churn: "0" }))} without churn, ${number(error("law", { ...base, denoiser, churn: most }))} with`;
        return `When something went wrong earlier. Fresh noise blurs a mistake made at high noise, and the steps that follow repair it (${pair("high")}). A mistake at low noise is made again and again (${pair("low")}). An exact denoiser has nothing to gain (${pair("exact")}; perfect samples score ${number(data.floor)}). Change the denoiser and the churn.`;
      },
    ],
  };

  // Controls
  const tag = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const fieldset = (label, ...children) => tag("fieldset", {}, tag("legend", {}, label), ...children);
  const radio = (name, [value, label]) => {
    const input = tag("input", { type: "radio", name, value });
    input.addEventListener("change", () => choose({ [name]: value }));
    return tag("label", { class: "explorer-pill" }, input, tag("span", {}, label));
  };
  const slider = ([name, label, values]) => {
    const input = tag("input", { type: "range", id: `explorer-${name}`, min: 0, max: values.length - 1, step: 1 });
    input.addEventListener("input", () => {
      const levels = name === "rho" ? { levels: "edm" } : {};
      choose({ ...levels, [name]: values[input.value] });
    });
    const output = tag("output", { for: input.id });
    return tag("div", { class: "explorer-slider" }, tag("label", { for: input.id }, label, " "), output, input);
  };
  const button = (label, act) => {
    const element = tag("button", { type: "button" }, label);
    element.addEventListener("click", act);
    return element;
  };
  const form = tag("form", { class: "explorer-choices", "aria-label": "Choices of the sampler" });
  form.append(
    fieldset("Try this", ...Object.entries(questions).map(([label, [choice, text]]) => button(label, () => choose(choice, text)))),
    fieldset("Columns of Table 1", ...Object.entries(recipes).map(([label, choice]) => button(label, () => choose({ ...choice, churn: "0" })))),
    ...groups.slice(0, 1).map(([name, label, options]) => fieldset(label, ...options.map((o) => radio(name, o)), slider(sliders[0]))),
    ...groups.slice(1, 3).map(([name, label, options]) => fieldset(label, ...options.map((o) => radio(name, o)))),
    fieldset("Cost", slider(sliders[1])),
    ...groups.slice(3, 5).map(([name, label, options]) => fieldset(label, ...options.map((o) => radio(name, o)))),
  );
  const figure = (id, caption) => {
    const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    drawing.id = `explorer-${id}`;
    drawing.setAttribute("role", "img");
    return tag("figure", {}, drawing, tag("figcaption", {}, caption));
  };
  const [errorName, errorLabel, errorOptions] = groups[5];
  const views = tag("div", { class: "explorer-views" },
    tag("p", { id: "explorer-advice" }),
    tag("p", { id: "explorer-sentence", "aria-live": "polite" }),
    figure("paths", `Eight paths from noise (left) to data (right): the sampler’s, with a dot where it stops (at most 18 of its levels), over the exact ODE’s (thin). Grey: the density of noisy data. Right: where the ${data.samples.toLocaleString("en")} samples end, against the exact density (line).`),
    tag("div", { class: "explorer-pair" },
      figure("samples", "Eighty samples over the true density. A line leads to where the exact ODE takes the same noise."),
      tag("div", {}, figure("errors", "Error against denoiser calls, for the three solvers; the ring is your choice."),
        fieldset(errorLabel, ...errorOptions.map((o) => radio(errorName, o))))),
    tag("details", {}, tag("summary", {}, "The numbers, and the code"), tag("div", { id: "explorer-table" }), tag("pre", { id: "explorer-code", tabindex: "0" })),
  );

  function code() {
    const n = state.n;
    const [low, high] = data.range;
    const levels = {
      edm: `edm.edm_sigmas(${n}, rho=${state.rho}.0)`,
      ve: `edm.ve_sigmas(${n}, ${low}, ${high})`,
      vp: `edm.vp_sigmas(${n}, beta_d=vp.beta_d, beta_min=vp.beta_min)`,
      iddpm: `edm.iddpm_sigmas(${n}, ${low}, ${high})`,
    }[state.levels];
    const vp = state.levels === "vp" || state.clock === "vp" ? `vp = edm.VariancePreserving.from_range(${low}, ${high})\n` : "";
    const clock = { edm: "edm.Linear()", ve: "edm.VarianceExploding()", vp: "vp" }[state.clock];
    const solver = { euler: "edm.Euler()", heun: "edm.Heun()", dpm: "edm.DPMSolverPP2M()" }[state.solver];
    const churn = state.churn === "0" ? "" : `,\n    churn=edm.Churn(${state.churn}, ${data.churnLow}), key=key`;
    return `${vp}sigmas = ${levels}\nx = edm.sample(\n    denoiser, noise, sigmas, schedule=${clock}, solver=${solver}${churn}\n)`;
  }
  function table() {
    const rows = data.steps.map((n) => {
      const cells = [n, calls(n, state.solver), number(error("path", { n })), number(error("law", { n }))];
      return `<tr><td>${cells.join("</td><td>")}</td></tr>`;
    });
    return `<table><thead><tr><th>steps</th><th>calls</th><th>path error</th><th>distance from the truth</th></tr></thead><tbody>${rows.join("")}</tbody></table>`;
  }

  // Paths, samples and histograms: inflated from the file of a denoiser and a churn
  const files = {};
  const arrived = {};
  window.explorer.packed = async (name, text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    arrived[name](new Uint8Array(await new Response(stream).arrayBuffer()));
  };
  function fetched(name) {
    files[name] ??= new Promise((resolve, reject) => {
      arrived[name] = resolve;
      const script = tag("script", { src: `${here}data-${name}.js` });
      script.addEventListener("error", () => reject(new Error(`no ${script.src}`)));
      document.head.append(script);
    });
    return files[name];
  }
  // Bytes lie transposed, as differences from combination to combination (see `compress`).
  function unpacked(bytes, s) {
    const count = data.grids.length * data.movers.length;
    const size = (k) => data.paths * data.vertices[k] + 2 * data.shown + data.bins;
    let offset = 0;
    for (let k = 0; k < step(s); k++) offset += size(k) * count;
    const found = new Uint8Array(size(step(s)));
    for (let i = 0; i < found.length; i++)
      for (let j = 0; j <= row(s); j++) found[i] += bytes[offset + i * count + j];
    const width = data.vertices[step(s)];
    const scaled = (from, length, low, high) =>
      Array.from(found.subarray(from, from + length), (byte) => low + (byte / 255) * (high - low));
    const corners = scaled(0, data.paths * width, -data.tall, data.tall);
    const points = scaled(data.paths * width, 2 * data.shown, -data.limit, data.limit);
    return {
      paths: Array.from({ length: data.paths }, (_, p) => corners.slice(p * width, (p + 1) * width)),
      samples: Array.from({ length: data.shown }, (_, p) => [points[2 * p], points[2 * p + 1]]),
      density: scaled(data.paths * width + 2 * data.shown, data.bins, 0, 2),
    };
  }

  // The page follows the state
  const byId = (id) => document.getElementById(`explorer-${id}`);
  function choose(change, text = null) {
    Object.assign(state, change);
    advice = text ?? advice;
    const address = new URLSearchParams(state).toString();
    history.replaceState(null, "", `#${address}`);
    show();
  }
  async function show() {
    for (const input of root.querySelectorAll("input[type=radio]"))
      input.checked = input.name === "error" ? input.value === kind() : state[input.name] === input.value;
    root.querySelector("input[value=path]").disabled = state.churn !== "0";
    for (const input of root.querySelectorAll("input[name=clock]")) input.disabled = state.solver === "dpm";
    for (const [name, , values] of sliders) {
      const text = name === "n" ? `${state.n} (${calls(state.n, state.solver)} calls)` : state.rho;
      byId(name).value = values.indexOf(state[name]);
      byId(name).setAttribute("aria-valuetext", text);
      byId(name).previousElementSibling.textContent = text;
    }
    byId("advice").textContent = advice ? advice() : "";
    byId("sentence").textContent = sentence();
    byId("table").innerHTML = table();
    byId("code").textContent = code();
    const asked = { ...state };
    const shown = unpacked(await fetched(file(asked)), asked);
    if (Object.keys(asked).some((key) => asked[key] !== state[key])) return; // a later choice
    const curve = (solver, churn = state.churn) =>
      data.steps.map((n) => [calls(n, solver), error(kind(), { n: String(n), solver, churn })]);
    window.explorer.draw({
      state, shown, curve, data, kind: kind(), name: solverNames[state.solver],
      levels: data.levels[grid(state)][step(state)],
      here: [calls(state.n, state.solver), error(kind())],
    });
    root.dataset.shown = new URLSearchParams(state).toString();
  }
  function read() {
    for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
      const group = [...groups, ...sliders].find(([name]) => name === key);
      const options = group?.[2].map((option) => (Array.isArray(option) ? option[0] : option));
      if (options?.includes(value)) state[key] = value;
    }
  }

  root.replaceChildren(form, views);
  window.addEventListener("hashchange", () => { read(); show(); });
  let width = 0;
  new ResizeObserver(() => { // also draws for the first time
    if (width !== views.clientWidth) { width = views.clientWidth; show(); }
  }).observe(views);
  read();
})();
