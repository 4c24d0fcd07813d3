// The explorer in words, and its choice in Python.
const words = (() => {
  const minus = (text) => String(text).replaceAll("-", "−");
  const number = (v, digits = 2) => minus(Number(v.toPrecision(digits)));
  const pair = (x) => minus(`(${x.map((v) => v.toFixed(2)).join(", ")})`);
  const percent = (v) => `${Math.round(100 * v)}%`;
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

  function denoiser(points, { x, sigma, weights, denoised }) {
    const k = runs.nearest(points, x);
    const [away, arrow] = [points[k], denoised].map((y) => Math.sqrt(edm.squared_distance(x, y)));
    const entropy = weights.reduce((sum, w) => sum - (w > 0 ? w * Math.log(w) : 0), 0);
    return (
      `At σ = ${sigma} and x = ${pair(x)}, the nearest point, ${pair(points[k])}, is ${number(away)} ` +
      `away and has the weight ${percent(weights[k])}. D = ${pair(denoised)} is ${number(arrow)} from x, ` +
      `an average of about ${number(Math.exp(entropy))} of ${plural(points.length, "point")}.`
    );
  }

  const calls = ({ way, solver, n }) => (way !== "sde" && solver === "heun" ? 2 * n - 1 : n);

  const method = ({ way, solver, alpha }) => {
    if (way === "sde") return "The reverse SDE, by the method of Euler and Maruyama";
    if (solver === "euler") return "Euler’s method";
    return alpha === 1 ? "Heun’s method" : `Heun’s method with α = ${alpha}`;
  };

  function sampler(state, { missed, uneven, fair }) {
    const levels = { edm: `EDM’s (ρ = ${state.rho})`, ve: "VE’s", vp: "VP’s", iddpm: "iDDPM’s" };
    const clocks = { linear: "in the clock σ = t", ve: "in VE’s clock", vp: "in VP’s clock" };
    const churn = state.way === "churn" ? `, with S_churn = ${state.s_churn}` : "";
    const count = missed.filter(Boolean).length;
    const others =
      state.way === "ode"
        ? `${count} of ${missed.length} samples end at another point than the exact ODE takes them to. `
        : "";
    return (
      `${method(state)}, on ${state.n} of ${levels[state.grid]} levels, ${clocks[state.clock]}${churn}; ` +
      `${plural(calls(state), "call")} of D a sample. ${others}The points’ shares are ` +
      `${number(uneven)} from even; ${missed.length} draws of the points themselves: ${number(fair)}.`
    );
  }

  // Python, for the `noise` of one sample (and the `draws` of its steps)

  const literal = (v) => (Number.isInteger(v) ? `${v}.0` : String(v));
  const list = (x) => `[${x.map(literal).join(", ")}]`;

  function code(state) {
    const range = `${state.n}, ${runs.LOW}, ${literal(runs.HIGH)}`;
    const sigmas = {
      edm: `edm.edm_sigmas(${range}, rho=${literal(state.rho)})`,
      ve: `edm.ve_sigmas(${range})`,
      vp: `edm.vp_sigmas(${state.n}, beta_d=vp.beta_d, beta_min=vp.beta_min)`,
      iddpm: `edm.iddpm_sigmas(${range})`,
    };
    const schedule = { linear: "edm.Linear()", ve: "edm.VarianceExploding()", vp: "vp" };
    const vp = `vp = edm.VariancePreserving.from_range(${runs.LOW}, ${literal(runs.HIGH)})`;
    return [
      `denoiser = edm.EmpiricalDenoiser([${choices.points(state).map(list).join(", ")}])`,
      `D = denoiser(jnp.array(${list(state.x)}), ${literal(state.sigma)})`,
      ...(state.clock === "vp" || state.grid === "vp" ? [vp] : []),
      `sigmas = ${sigmas[state.grid]}`,
      ...(state.way === "sde" ? sde : sample)(state, schedule[state.clock]),
    ].join("\n");
  }

  function sample(state, schedule) {
    const solver = state.solver === "euler" ? "edm.Euler()" : `edm.Heun(${literal(state.alpha)})`;
    const numbers = ["s_churn", "s_min", "s_max", "s_noise"].map((name) => literal(state[name]));
    const churn = state.way === "churn" ? [`churn = edm.Churn(${numbers.join(", ")})`] : [];
    const last = churn.length ? ", churn=churn, key=key" : "";
    return [
      ...churn,
      `x = edm.sample(`,
      `    denoiser, noise, sigmas, schedule=${schedule}, solver=${solver}${last}`,
      `)`,
    ];
  }

  const sde = (state, schedule) => [
    `schedule = ${schedule}`,
    "drift, diffusion = edm.reverse_sde(denoiser, schedule)",
    "t = jnp.array([schedule.time(sigma) for sigma in sigmas])",
    "x = noise * schedule.sigma(t[0]) * schedule.scale(t[0])",
    "for i in range(len(t) - 1):",
    "    kick = jnp.sqrt(t[i] - t[i + 1]) * draws[i]",
    "    x += (t[i + 1] - t[i]) * drift(t[i], x, None) + diffusion(t[i], x, None).mv(kick)",
    "x = denoiser(x / schedule.scale(t[-1]), sigmas[-1])",
  ];

  return { number, plural, denoiser, sampler, calls, code };
})();
