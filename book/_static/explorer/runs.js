// What the sampler does for a choice: its runs, the exact ODE's, and how the two compare.
const runs = (() => {
  const [LOW, HIGH] = [0.002, 80]; // one range of noise levels for all grids
  const SAMPLES = 200;
  const REFERENCE = 128; // steps of Heun's method that stand for the exact ODE

  const vp = edm.VariancePreserving.from_range(LOW, HIGH);
  const schedules = { linear: edm.Linear(), ve: edm.VarianceExploding(), vp };
  const grids = {
    edm: ({ n, rho }) => edm.edm_sigmas(n, LOW, HIGH, rho),
    ve: ({ n }) => edm.ve_sigmas(n, LOW, HIGH),
    vp: ({ n }) => edm.vp_sigmas(n, 1e-3, vp.beta_d, vp.beta_min),
    iddpm: ({ n }) => edm.iddpm_sigmas(n, LOW, HIGH),
  };

  // The noise of the samples: a start each, and draws for each step
  function recorded({ seed, shift, n }) {
    const pairs = (draw, count) => Array.from({ length: count }, () => [draw(), draw()]);
    const later = edm.normal(seed + 1000);
    const noise = pairs(edm.normal(seed), SAMPLES).map(([a, b]) => [a + shift, b]);
    return { noise, draws: noise.map(() => pairs(later, n)) };
  }

  function run(state) {
    const { noise, draws } = recorded(state);
    const denoiser = edm.EmpiricalDenoiser(choices.points(state));
    const [schedule, sigmas] = [schedules[state.clock], grids[state.grid](state)];
    const solver = state.solver === "heun" ? edm.Heun(state.alpha) : edm.Euler();
    const { s_churn, s_min, s_max, s_noise } = state;
    const churn = state.way === "churn" ? edm.Churn(s_churn, s_min, s_max, s_noise) : null;
    const path = (z, i) =>
      state.way === "sde"
        ? edm.sde_path(denoiser, z, sigmas, { schedule, draws: draws[i] })
        : edm.sample_path(denoiser, z, sigmas, { schedule, solver, churn, draws: draws[i] });
    const times = [...sigmas.map(schedule.time), 0];
    const paths = noise.map(path);
    const right = state.way === "ode" ? exact(state, noise) : null; // with more noise there is none
    return { schedule, sigmas, times, noise, draws, paths, exact: right };
  }

  // The exact ODE's paths from the same noise, kept until points or noise change
  let kept = {};
  function exact(state, noise) {
    const name = JSON.stringify([choices.points(state), noise]);
    if (kept.name !== name) {
      const denoiser = edm.EmpiricalDenoiser(choices.points(state));
      const levels = edm.edm_sigmas(REFERENCE, LOW, HIGH);
      const paths = noise.map((z) => edm.sample_path(denoiser, z, levels));
      kept = { name, sigmas: [...levels, 0], paths };
    }
    return kept;
  }

  function nearest(points, x) {
    const distances = points.map((y) => edm.squared_distance(x, y));
    return distances.indexOf(Math.min(...distances));
  }

  // Which samples end at another point than the exact ODE's, and how far the shares are from even
  function judge(state, { paths, exact }) {
    const points = choices.points(state);
    const ends = (all) => all.map((path) => nearest(points, path.at(-1)));
    const reached = ends(paths);
    const right = exact ? ends(exact.paths) : reached;
    const missed = reached.map((end, i) => end !== right[i]);
    const shares = points.map((_, k) => reached.filter((end) => end === k).length / paths.length);
    const even = 1 / points.length;
    const uneven = shares.reduce((sum, share) => sum + Math.abs(share - even), 0) / 2;
    // What draws of the points themselves have on average: |share - even| as of a normal
    const fair = Math.sqrt(((2 / Math.PI) * even * (1 - even)) / paths.length) / (2 * even);
    return { missed, shares, uneven, fair };
  }

  // The window x / (s sqrt(1 + sigma^2)), in which noise and data have one size

  const windowed = (x, sigma) => x.map((v) => v / Math.hypot(1, sigma));
  const seen = ({ schedule }, t, x) =>
    windowed(x.map((v) => v / schedule.scale(t)), schedule.sigma(t));
  const mix = (a, b, share) => a.map((v, j) => v + share * (b[j] - v));

  // A path in the window; a step that is straight in the clock has `parts` points, but the last
  const curve = (found, path, parts) =>
    path.flatMap((x, i) => {
      const [t, next] = [found.times[i], path[i + 1]];
      if (i >= path.length - 2) return [seen(found, t, x)];
      return Array.from({ length: parts }, (_, k) => {
        const here = t + (k / parts) * (found.times[i + 1] - t);
        return seen(found, here, mix(x, next, k / parts));
      });
    });

  // All samples in the window at a step, which may lie between two
  function cloud(found, step) {
    const i = Math.min(Math.floor(step), found.times.length - 2);
    return found.paths.map((path) => {
      const [here, next] = [i, i + 1].map((k) => seen(found, found.times[k], path[k]));
      return mix(here, next, step - i);
    });
  }

  return { LOW, HIGH, SAMPLES, run, nearest, judge, windowed, curve, cloud };
})();
