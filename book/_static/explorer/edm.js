// The mathematics of the explorer, by the names and in the forms of the package (edm_tutorial/),
// in float64. A point is an array of numbers, a denoiser a function D(x, sigma).
const edm = (() => {
  // Schedules: sigma(t) and s(t), their derivatives, and the time of a noise level (Table 1)

  const Linear = () => ({
    sigma: (t) => t,
    sigma_dot: () => 1,
    time: (sigma) => sigma,
    scale: () => 1,
    scale_dot: () => 0,
  });

  const VarianceExploding = () => ({
    sigma: (t) => Math.sqrt(t),
    sigma_dot: (t) => 0.5 / Math.sqrt(t),
    time: (sigma) => sigma ** 2,
    scale: () => 1,
    scale_dot: () => 0,
  });

  function VariancePreserving(beta_d = 19.9, beta_min = 0.1) {
    const log_scale = (t) => t * ((beta_d * t) / 2 + beta_min);
    const rate = (t) => beta_d * t + beta_min;
    const sigma = (t) => Math.sqrt(Math.expm1(log_scale(t)));
    const scale = (t) => Math.exp(-log_scale(t) / 2);
    return {
      sigma,
      sigma_dot: (t) => (rate(t) * Math.exp(log_scale(t))) / (2 * sigma(t)),
      time: (sigma) => {
        const level = 2 * Math.log1p(sigma ** 2);
        return level / (Math.sqrt(beta_min ** 2 + beta_d * level) + beta_min);
      },
      scale,
      scale_dot: (t) => (-rate(t) / 2) * scale(t),
      beta_d,
      beta_min,
    };
  }

  // The VP schedule with sigma(eps) = sigma_min and sigma(1) = sigma_max
  VariancePreserving.from_range = (sigma_min, sigma_max, eps = 1e-3) => {
    const [low, high] = [Math.log1p(sigma_min ** 2), Math.log1p(sigma_max ** 2)];
    const beta_d = (2 * (low / eps - high)) / (eps - 1);
    return VariancePreserving(beta_d, high - beta_d / 2);
  };

  // Grids: n noise levels, descending; the final 0 is implied (Table 1)

  const ramp = (n) => Array.from({ length: n }, (_, i) => (i === 0 ? 0 : i / (n - 1)));

  function edm_sigmas(n, sigma_min = 0.002, sigma_max = 80, rho = 7) {
    const [low, high] = [sigma_min ** (1 / rho), sigma_max ** (1 / rho)];
    return ramp(n).map((u) => (high + u * (low - high)) ** rho);
  }

  const ve_sigmas = (n, sigma_min = 0.02, sigma_max = 100) =>
    ramp(n).map((u) => sigma_max * (sigma_min / sigma_max) ** u);

  const vp_sigmas = (n, eps = 1e-3, beta_d = 19.9, beta_min = 0.1) =>
    ramp(n).map((u) => VariancePreserving(beta_d, beta_min).sigma(1 + u * (eps - 1)));

  function iddpm_table(levels = 1000, c_1 = 1e-3, c_2 = 8e-3) {
    const angle = (j) => ((Math.PI / 2) * j) / (levels * (c_2 + 1));
    const u = new Array(levels + 1).fill(0);
    for (let j = levels; j > 0; j--) {
      // 1 - abar_{j-1} / abar_j as a product of sines: no difference of nearly equal numbers
      const [here, before] = [angle(j), angle(j - 1)];
      const sines = Math.sin(here - before) * Math.sin(here + before);
      const drop = Math.min(sines / Math.sin(here) ** 2, 1 - c_1);
      u[j - 1] = Math.sqrt((u[j] ** 2 + drop) / (1 - drop));
    }
    return u;
  }

  function iddpm_sigmas(n, sigma_min = 0.002, sigma_max = 81) {
    const slack = 1 + 1e-6; // a bound that is itself a level counts, whatever its last digits
    const trained = iddpm_table().filter((u) => u <= sigma_max * slack && u >= sigma_min / slack);
    const step = (trained.length - 1) / Math.max(n - 1, 1);
    return Array.from({ length: n }, (_, i) => trained[half_to_even(step * i)]);
  }

  function half_to_even(value) {
    const floor = Math.floor(value);
    const up = value - floor > 0.5 || (value - floor === 0.5 && floor % 2 === 1);
    return floor + (up ? 1 : 0);
  }

  // The ideal denoiser of a data set (Eq. 57): a softmax average of its points

  function squared_distance(x, y) {
    let sum = 0;
    for (let j = 0; j < x.length; j++) sum += (y[j] - x[j]) ** 2;
    return sum;
  }

  function EmpiricalDenoiser(data) {
    function weights(x, sigma) {
      const w = data.map((y) => squared_distance(x, y));
      let [least, total] = [Infinity, 0];
      for (const distance of w) if (distance < least) least = distance;
      for (let i = 0; i < w.length; i++) {
        w[i] = Math.exp(-(w[i] - least) / (2 * sigma ** 2)); // the nearest's is 1: no overflow
        total += w[i];
      }
      return w.map((term) => term / total);
    }
    function denoise(x, sigma) {
      const [w, mean] = [weights(x, sigma), x.map(() => 0)];
      for (let i = 0; i < w.length; i++)
        for (let j = 0; j < mean.length; j++) mean[j] += w[i] * data[i][j];
      return mean;
    }
    return Object.assign(denoise, { weights });
  }

  // Eq. 4, and Eq. 6 with beta = sigma' / sigma: dx/dt of the ODE, drift and diffusion of the SDE

  const probability_flow = (denoiser, schedule) => (t, x) => drift(denoiser, schedule, t, x, 1);

  const reverse_sde = (denoiser, schedule) => ({
    drift: (t, x) => drift(denoiser, schedule, t, x, 2),
    diffusion: (t) =>
      schedule.scale(t) * Math.sqrt(2 * schedule.sigma(t) * schedule.sigma_dot(t)),
  });

  // The pull towards the denoised is once sigma' / sigma in the ODE, twice in the SDE
  function drift(denoiser, schedule, t, x, times) {
    const [sigma, s] = [schedule.sigma(t), schedule.scale(t)];
    const pull = (times * schedule.sigma_dot(t)) / sigma;
    const rescale = schedule.scale_dot(t) / s;
    const denoised = denoiser(x.map((v) => v / s), sigma);
    return x.map((v, j) => rescale * v + pull * (v - s * denoised[j]));
  }

  // Solvers: one step of the ODE from t to t_next (Algorithms 1 and 3)

  const Euler = () => (velocity, x, t, t_next) => {
    const slope = velocity(t, x);
    return x.map((v, j) => v + (t_next - t) * slope[j]);
  };

  const Heun = (alpha = 1) => (velocity, x, t, t_next) => {
    const [h, half] = [t_next - t, 1 / (2 * alpha)];
    const first = velocity(t, x);
    const ahead = x.map((v, j) => v + alpha * h * first[j]);
    const second = velocity(t_next - (1 - alpha) * h, ahead);
    return x.map((v, j) => v + h * ((1 - half) * first[j] + half * second[j]));
  };

  // Churn: noise added before a step (Algorithm 2, lines 4-6); `draws[i]` is unit noise of step i

  const Churn = (s_churn, s_min = 0, s_max = Infinity, s_noise = 1) => ({
    gamma: (sigma, n) =>
      s_min <= sigma && sigma <= s_max ? Math.min(s_churn / n, Math.SQRT2 - 1) : 0,
    s_noise,
  });

  function raise_noise(churn, schedule, x, t, n, draw) {
    const sigma = schedule.sigma(t);
    const gamma = churn ? churn.gamma(sigma, n) : 0;
    if (gamma === 0) return [x, t];
    const t_hat = schedule.time(sigma * (1 + gamma));
    const [sigma_hat, scale] = [schedule.sigma(t_hat), schedule.scale(t_hat)];
    const added = Math.sqrt(Math.max((sigma_hat - sigma) * (sigma_hat + sigma), 0));
    const rescale = scale / schedule.scale(t);
    return [x.map((v, j) => rescale * v + added * scale * churn.s_noise * draw[j]), t_hat];
  }

  // From unit noise to data: the n + 1 states at the start of each step, then the sample

  function sample_path(denoiser, noise, sigmas, options = {}) {
    const { schedule = Linear(), solver = Heun(), churn = null, draws = [] } = options;
    const velocity = probability_flow(denoiser, schedule);
    const times = sigmas.map(schedule.time);
    const path = [start(noise, schedule, times[0])];
    times.forEach((t, i) => {
      const [x_hat, t_hat] = raise_noise(churn, schedule, path[i], t, times.length, draws[i]);
      const last = i === times.length - 1; // to time 0 with one call, by Euler's method
      path.push((last ? Euler() : solver)(velocity, x_hat, t_hat, last ? 0 : times[i + 1]));
    });
    return path;
  }

  // The reverse SDE by the method of Euler and Maruyama; the last state is the denoised
  function sde_path(denoiser, noise, sigmas, { schedule = Linear(), draws }) {
    const { drift, diffusion } = reverse_sde(denoiser, schedule);
    const times = sigmas.map(schedule.time);
    const path = [start(noise, schedule, times[0])];
    for (let i = 0; i < times.length - 1; i++) {
      const [x, t, h] = [path[i], times[i], times[i + 1] - times[i]];
      const [slope, kick] = [drift(t, x), diffusion(t) * Math.sqrt(-h)];
      path.push(x.map((v, j) => v + h * slope[j] + kick * draws[i][j]));
    }
    const [t, x] = [times.at(-1), path.at(-1)];
    path.push(denoiser(x.map((v) => v / schedule.scale(t)), schedule.sigma(t)));
    return path;
  }

  const start = (noise, schedule, t) => noise.map((z) => z * schedule.sigma(t) * schedule.scale(t));

  // Unit normal draws: the same for the same seed (Lehmer's generator; Box and Muller's transform)
  function normal(seed) {
    const modulus = 2 ** 31 - 1;
    let state = ((seed * 69621 + 1) % (modulus - 1)) + 1;
    const uniform = () => (state = (48271 * state) % modulus) / modulus;
    for (let i = 0; i < 10; i++) uniform(); // near seeds part
    return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  return {
    Linear, VarianceExploding, VariancePreserving,
    edm_sigmas, ve_sigmas, vp_sigmas, iddpm_table, iddpm_sigmas,
    EmpiricalDenoiser, squared_distance,
    Euler, Heun, Churn, sample_path, sde_path, normal,
  };
})();
