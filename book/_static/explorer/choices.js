// What can be chosen in the explorer, and how its address keeps a choice.
const choices = (() => {
  const rounded = (v) => Math.round(100 * v) / 100 + 0; // no -0
  const around = (n, radius, turns) => Array.from({ length: n }, (_, i) => {
    const angle = (2 * Math.PI * turns * (i + 1)) / n;
    return [radius(angle) * Math.cos(angle), radius(angle) * Math.sin(angle)].map(rounded);
  });
  const PRESETS = {
    two: [[-1, 0], [1, 0]],
    ring: around(8, () => 1.2, 1),
    spiral: around(60, (angle) => angle / 8, 2),
  };
  const MOST = 150; // points

  // [name, label, [value, its words]...]; the first value is the start
  const RADIOS = [
    ["clock", "Clock", ["linear", "σ = t (EDM)"], ["ve", "σ = √t (VE)"], ["vp", "VP, scaled"]],
    ["grid", "Levels", ["edm", "EDM"], ["ve", "VE"], ["vp", "VP"], ["iddpm", "iDDPM"]],
    ["solver", "Solver", ["heun", "Heun"], ["euler", "Euler"]],
    ["way", "Noise on the way", ["ode", "none: ODE"], ["churn", "churn"], ["sde", "SDE"]],
    ["below", "Show σ below", ["80", "80"], ["8", "8"], ["2", "2"]],
    ["mode", "The pointer", ["move", "moves x"], ["draw", "draws points"], ["erase", "erases points"]],
  ];

  const upTo = (n) => Array.from({ length: n }, (_, i) => i + 1);
  const LEVELS = [0.01, 0.1, 1, 10].flatMap((decade) =>
    [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8].map((v) => Number((v * decade).toPrecision(2))));

  // [name, label, values, the start]
  const SLIDERS = [
    ["sigma", "Noise level σ", LEVELS, 0.5],
    ["n", "Steps N", [...upTo(10), 12, 14, 16, 18, 20, 24, 30, 36, 48, 72, 144], 18],
    ["rho", "ρ of EDM’s levels", [1, 2, 3, 4, 5, 6, 7, 8, 10, 15], 7],
    ["alpha", "α of Heun’s method", [0.5, 0.6, 0.7, 0.8, 0.9, 1], 1],
    ["s_churn", "S_churn", [0, 1, 2, 5, 10, 20, 40, 80], 10],
    ["s_min", "S_min", [0, 0.01, 0.05, 0.1, 0.3, 1, 3, 10], 0],
    ["s_max", "S_max", [0.05, 0.1, 0.3, 1, 3, 10, 80], 80],
    ["s_noise", "S_noise", [1, 1.003, 1.007, 1.02, 1.05, 1.1], 1],
    ["shift", "Shift of the starting noise", [0, 0.25, 0.5, 0.75, 1, 1.5, 2], 0],
  ];

  const START = {
    points: "spiral",
    x: [0.35, 0.6],
    seed: 1,
    ...Object.fromEntries(RADIOS.map(([name, , [first]]) => [name, first])),
    ...Object.fromEntries(SLIDERS.map(([name, , , start]) => [name, start])),
  };

  const points = (state) => PRESETS[state.points] ?? state.points;

  // The address holds what differs from the start: points=spiral&clock=ve, points=-1_0_1_0
  const flat = (value) => (Array.isArray(value) ? value.flat().join("_") : String(value));
  const address = (state) =>
    Object.keys(START)
      .filter((name) => flat(state[name]) !== flat(START[name]))
      .map((name) => `${name}=${flat(state[name])}`)
      .join("&");

  // The state of an address; what it does not know is left at the start
  function read(text) {
    const asked = Object.fromEntries(new URLSearchParams(text.replace("#", "")));
    const state = { ...START };
    for (const [name, , ...options] of RADIOS)
      if (options.some(([value]) => value === asked[name])) state[name] = asked[name];
    for (const [name, , values] of SLIDERS)
      if (values.includes(Number(asked[name]))) state[name] = Number(asked[name]);
    if (/^\d{1,6}$/.test(asked.seed)) state.seed = Number(asked.seed);
    if (asked.points in PRESETS) state.points = asked.points;
    else if (asked.points !== undefined) state.points = pairs(asked.points).slice(0, MOST);
    state.x = pairs(asked.x ?? "")[0] ?? START.x;
    return state;
  }

  const inside = (x) => x.map((v) => rounded(Math.max(-1.98, Math.min(1.98, v))));

  function pairs(text) {
    const list = text.split("_").filter(Boolean).map(Number).filter(Number.isFinite);
    return Array.from({ length: list.length >> 1 }, (_, i) => inside(list.slice(2 * i, 2 * i + 2)));
  }

  return { PRESETS, RADIOS, SLIDERS, LEVELS, MOST, START, points, address, read, inside };
})();
