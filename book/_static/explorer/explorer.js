// The explorer's page: its controls, and drawings and words that follow them.
const explorer = (() => {
  const root = document.getElementById("explorer");
  const byId = (id) => document.getElementById(`explorer-${id}`);
  const PATHS = 24; // of the samples, drawn in the plane
  const FEW = 8; // of them against the clock, and where noise on the way tangles them

  // The page, as HTML

  const radios = (wanted) => {
    const [name, label, ...options] = choices.RADIOS.find(([name]) => name === wanted);
    const pills = options.map(
      ([value, text]) =>
        `<label class="pill"><input type="radio" name="explorer-${name}" value="${value}"><span>${text}</span></label>`,
    );
    return `<fieldset><legend>${label}</legend>${pills.join("")}</fieldset>`;
  };
  const range = (id, label, max) =>
    `<div class="slider"><label for="explorer-${id}">${label}</label>
      <b id="explorer-${id}-value"></b>
      <input type="range" id="explorer-${id}" min="0" max="${max}" step="1"></div>`;
  const slider = (wanted) => {
    const [name, label, values] = choices.SLIDERS.find(([name]) => name === wanted);
    return range(name, label, values.length - 1);
  };
  const button = (id, text) => `<button type="button" id="explorer-${id}">${text}</button>`;
  const drawing = (id, role, label, box = "0 0 400 400") =>
    `<svg id="explorer-${id}" viewBox="${box}" role="${role}" aria-label="${label}"></svg>`;

  const KEYS = `On the plane, arrow keys move x (with Shift further), Enter puts a point at x,
    Backspace takes the nearest point away.`;
  const PAGE = `
    <div class="bar">
      <fieldset><legend>Points</legend>${button("two", "two")}${button("ring", "ring")}
        ${button("spiral", "spiral")}${button("clear", "none")}</fieldset>
      ${radios("mode")}
    </div>
    <div class="part denoiser">
      <figure>${drawing("plane", "application", KEYS).replace("<svg", '<svg tabindex="0"')}</figure>
      <div class="choices">
        <p id="explorer-denoiser-words" aria-live="polite"></p>
        ${slider("sigma")}
        ${drawing("weights", "img", "The weight of each point at x, against the noise level.", "0 0 400 150")}
      </div>
      <p class="caption">The denoiser. Green: each point’s weight at x, and their mean D. Dashed: σ around x. ${KEYS}</p>
    </div>
    <div class="part">
      <figure>${drawing("sampler", "img", `The points, paths that lead to them, and ${runs.SAMPLES} samples.`)}</figure>
      <div class="choices">
        <p id="explorer-sampler-words" aria-live="polite"></p>
        ${radios("clock")}${radios("grid")}${slider("rho")}${slider("n")}${radios("solver")}${slider("alpha")}
        ${radios("way")}<div class="churn">${["s_churn", "s_min", "s_max", "s_noise"].map(slider).join("")}</div>
        ${slider("shift")}
      </div>
      <div class="caption">
        ${range("step", "Step", 1)}
        <div class="bar">${button("play", "Play")}${button("noise", "New noise")}</div>
        The sampler: ${runs.SAMPLES} samples, some of their paths, and the exact ODE’s (thin), divided by √(1+σ²).
        Rings: the points’ shares. Red: ends at another point than the exact ODE.
      </div>
    </div>
    ${drawing("clock", "img", "The first coordinate of a few paths, against the time of the clock.")}
    <p class="caption">What the solver sees: the first coordinate of its x against the time of its clock, from noise (left) to data.
      Each step of the ODE is straight here; thin, the exact curves.</p>
    ${radios("below")}
    <details><summary>This choice in Python</summary><pre id="explorer-code" tabindex="0"></pre></details>`;

  // The page follows the state

  const state = choices.read(location.hash);
  const points = () => choices.points(state);
  const APART = ["x", "sigma", "mode"]; // what the sampler does not depend on
  let waiting = null; // for the sampler, while the choice still changes
  let held = false; // the pointer, which may go on drawing
  let shown = null; // the sampler's run
  let step = 0; // at which its samples are drawn

  function choose(change) {
    Object.assign(state, change);
    history.replaceState(null, "", `#${choices.address(state)}`);
    showChoices();
    showDenoiser();
    if (!Object.keys(change).every((name) => APART.includes(name))) awaitSampler();
    else if (!waiting) root.dataset.shown = choices.address(state);
  }

  function awaitSampler() {
    clearTimeout(waiting);
    waiting = setTimeout(() => (held ? awaitSampler() : showSampler()), 40);
  }

  function showChoices() {
    for (const input of root.querySelectorAll("[type=radio]"))
      input.checked = state[input.name.replace("explorer-", "")] === input.value;
    for (const [name, , values] of choices.SLIDERS) {
      const cost = name === "n" ? ` (${words.plural(words.calls(state), "call")})` : "";
      say(name, values.indexOf(state[name]), `${state[name]}${cost}`);
    }
    for (const name in choices.PRESETS) byId(name).setAttribute("aria-pressed", state.points === name);
    byId("rho").disabled = state.grid !== "edm";
    byId("alpha").disabled = state.solver !== "heun" || state.way === "sde";
    for (const input of root.querySelectorAll("[name=explorer-solver]")) input.disabled = state.way === "sde";
    root.querySelector(".churn").hidden = state.way !== "churn";
    byId("code").textContent = points().length ? words.code(state) : "";
  }

  // Words are read aloud when they change, and only then
  function tell(id, text) {
    if (byId(id).textContent !== text) byId(id).textContent = text;
  }

  function say(name, value, text) {
    byId(name).value = value;
    byId(name).setAttribute("aria-valuetext", text);
    byId(`${name}-value`).textContent = text;
  }

  function showDenoiser() {
    const { x, sigma } = state;
    if (!points().length) {
      draw.denoiser(byId("plane"), { points: [], x });
      byId("weights").innerHTML = "";
      tell("denoiser-words", "There is no point. Draw some, or press Enter on the plane.");
      return;
    }
    const denoiser = edm.EmpiricalDenoiser(points());
    const found = { points: points(), x, sigma, weights: denoiser.weights(x, sigma), denoised: denoiser(x, sigma) };
    draw.denoiser(byId("plane"), found);
    draw.weights(byId("weights"), {
      sigma,
      sigmas: choices.LEVELS,
      rows: choices.LEVELS.map((level) => denoiser.weights(x, level)),
    });
    tell("denoiser-words", words.denoiser(points(), found));
  }

  function showSampler() {
    waiting = null;
    cancelAnimationFrame(frame);
    shown = points().length ? runs.run(state) : null;
    step = state.n;
    byId("step").max = state.n;
    if (shown) {
      const verdict = runs.judge(state, shown);
      tell("sampler-words", words.sampler(state, verdict));
      drawPaths(verdict);
      drawClock();
      showStep();
    } else {
      for (const id of ["sampler", "clock"]) byId(id).innerHTML = "";
      tell("sampler-words", "Without points there is nothing to draw from.");
    }
    root.dataset.shown = choices.address(state);
  }

  const kind = () => (state.way === "sde" ? "sde" : state.solver);
  const few = (found, count) => (found ? found.paths.slice(0, count) : []);

  function drawPaths(verdict) {
    const [count, parts] = state.way === "ode" ? [PATHS, Math.ceil(120 / state.n)] : [FEW, 1];
    draw.sampler(byId("sampler"), {
      ...verdict,
      points: points(),
      kind: kind(),
      cloud: runs.cloud(shown, step),
      paths: few(shown, count).map((path) => runs.curve(shown, path, parts)),
      exact: few(shown.exact, count).map((path) =>
        path.map((x, i) => runs.windowed(x, shown.exact.sigmas[i]))),
    });
  }

  function drawClock() {
    const { schedule, times, exact } = shown;
    const fine = exact?.sigmas.map((sigma) => (sigma > 0 ? schedule.time(sigma) : 0));
    draw.clock(byId("clock"), {
      schedule,
      times,
      kind: kind(),
      highest: Number(state.below),
      paths: few(shown, FEW).map((path) => path.map((x, i) => [times[i], x[0]])),
      exact: few(exact, FEW).map((path) =>
        path.map((x, i) => [fine[i], x[0] * schedule.scale(fine[i])])),
    });
  }

  function showStep() {
    const i = Math.floor(step);
    say("step", step, `${i} of ${state.n}, σ = ${words.number(shown.sigmas[i] ?? 0)}`);
    draw.move(byId("sampler"), runs.cloud(shown, step));
  }

  // The samples walk from noise to the points, when asked
  let frame = null;
  function play() {
    cancelAnimationFrame(frame);
    const [began, length] = [performance.now(), 3000];
    const walk = (now) => {
      step = Math.min(1, Math.max(0, (now - began) / length)) * state.n;
      showStep();
      if (step < state.n) frame = requestAnimationFrame(walk);
    };
    frame = requestAnimationFrame(walk);
  }

  // Pointer and keys on the plane

  const apart = (x, y) => edm.squared_distance(x, y) > 0.12 ** 2;
  function add(y) {
    if (points().length < choices.MOST) choose({ points: [...points(), choices.inside(y)] });
  }
  function pointed(event) {
    const here = draw.place(byId("plane"), event);
    if (state.mode === "move") choose({ x: choices.inside(here) });
    else if (state.mode === "erase") {
      const left = points().filter((y) => apart(here, y));
      if (left.length < points().length) choose({ points: left });
    } else if (points().every((y) => apart(here, y))) add(here);
  }
  function pressed(event) {
    const far = event.shiftKey ? 0.25 : 0.05;
    const [a, b] = state.x;
    const without = () => points().filter((_, i) => i !== runs.nearest(points(), state.x));
    const acts = {
      ArrowLeft: () => choose({ x: choices.inside([a - far, b]) }),
      ArrowRight: () => choose({ x: choices.inside([a + far, b]) }),
      ArrowUp: () => choose({ x: choices.inside([a, b + far]) }),
      ArrowDown: () => choose({ x: choices.inside([a, b - far]) }),
      Enter: () => add(state.x),
      Backspace: () => choose({ points: without() }),
    };
    const act = acts[event.key === "Delete" ? "Backspace" : event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  }

  function listen() {
    for (const [name, , values] of choices.SLIDERS)
      byId(name).addEventListener("input", (event) => choose({ [name]: values[event.target.value] }));
    for (const input of root.querySelectorAll("[type=radio]"))
      input.addEventListener("change", () => choose({ [input.name.replace("explorer-", "")]: input.value }));
    for (const name in choices.PRESETS) byId(name).addEventListener("click", () => choose({ points: name }));
    byId("clear").addEventListener("click", () => choose({ points: [], mode: "draw" }));
    byId("noise").addEventListener("click", () => choose({ seed: state.seed + 1 }));
    byId("play").addEventListener("click", () => shown && play());
    byId("step").addEventListener("input", (event) => {
      cancelAnimationFrame(frame);
      step = Number(event.target.value);
      if (shown) showStep();
    });
    const plane = byId("plane");
    plane.addEventListener("keydown", pressed);
    plane.addEventListener("pointerdown", (event) => {
      plane.setPointerCapture(event.pointerId);
      held = true;
      pointed(event);
    });
    plane.addEventListener("pointermove", (event) => held && pointed(event));
    plane.addEventListener("lostpointercapture", () => (held = false));
    // The address of a heading is no choice
    addEventListener("hashchange", () => location.hash.includes("=") && choose(choices.read(location.hash)));
    // An experiment of the text makes its choice, and leads to the drawings
    for (const link of document.querySelectorAll("[data-explorer]"))
      link.addEventListener("click", () => {
        choose(choices.read(link.dataset.explorer));
        byId(link.dataset.show).closest(".part").scrollIntoView({ block: "start" });
      });
  }

  root.innerHTML = PAGE;
  listen();
  showChoices();
  showDenoiser();
  showSampler();
  let width = root.clientWidth;
  new ResizeObserver(() => { // the clock's drawing has two shapes
    if (width !== root.clientWidth && shown) drawClock();
    width = root.clientWidth;
  }).observe(root);
  return { state, choose, found: () => shown };
})();
