// Everything Python can call. Pointers cross as integers (tensor.data_ptr()); this file knows no kernel and no torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "core/wavenet.h"

namespace py = pybind11;
namespace fv = fastvoc;

void bind_gated_residual_stack(py::module_& m);  // bindings_gated_residual_stack.cpp

using nogil = py::call_guard<py::gil_scoped_release>;
using Address = std::uintptr_t;

namespace {

std::atomic<const fv::CpuKernels*> chosen{nullptr};
std::atomic<int> threads{1};

const fv::CpuKernels& kernels() { return *chosen.load(std::memory_order_relaxed); }

void set_isa(const std::string& name) {
  for (int i = 0; i < fv::isa_count(); ++i) {
    const fv::Isa& isa = fv::isa(i);
    if (name != isa.kernels->name) continue;
    if (!isa.supported) throw std::runtime_error(name + ": " + isa.reason);
    chosen = isa.kernels;
    return;
  }
  throw std::invalid_argument("unknown instruction set '" + name + "'");
}

std::string widest_isa() {
  const char* best = nullptr;
  for (int i = 0; i < fv::isa_count(); ++i)
    if (fv::isa(i).supported && !fv::isa(i).emulated) best = fv::isa(i).kernels->name;
  return best;
}

// f(thread, first, last) over [0, n) on the set number of threads, in pieces of at least `grain` that begin at multiples of `align`.
template <class F>
void parallel_pieces(std::int64_t n, std::int64_t grain, int n_threads, F f, std::int64_t align = 16) {
  struct Context { F& f; std::int64_t n, align; int team; } context{f, n, align, 1};
  context.team = int(std::max<std::int64_t>(1, std::min<std::int64_t>(n_threads, n / grain)));
  fv::run_pieces(context.team, n_threads, [](void* p, int i) {
    const Context& c = *static_cast<Context*>(p);
    const std::int64_t piece = ((c.n + c.team - 1) / c.team + c.align - 1) / c.align * c.align;
    const std::int64_t first = std::min(c.n, piece * i), last = std::min(c.n, first + piece);
    if (first < last) c.f(i, first, last);
  }, &context);
}

template <class F>
void parallel_ranges(std::int64_t n, std::int64_t grain, F f, std::int64_t align = 16) {
  parallel_pieces(n, grain, threads, [&](int, std::int64_t first, std::int64_t last) { f(first, last); }, align);
}

constexpr std::int64_t kGrain = 16384;  // values a thread must have to be worth waking: some 10 µs of work

void gated_activation(Address a, Address b, Address y, std::int64_t n) {
  parallel_ranges(n, kGrain, [=](std::int64_t i, std::int64_t end) {
    kernels().gated_activation((const float*)a + i, (const float*)b + i, (float*)y + i, end - i);
  });
}

void gated_activation_backward(Address dy, Address a, Address b, Address da, Address db, std::int64_t n) {
  parallel_ranges(n, kGrain, [=](std::int64_t i, std::int64_t end) {
    kernels().gated_activation_backward((const float*)dy + i, (const float*)a + i, (const float*)b + i, (float*)da + i,
                                        (float*)db + i, end - i);
  });
}

// f(item, chunk, first, last) for every chunk of every item's n values. Chunks do not depend on the number of threads, so
// neither does what is summed over them.
constexpr std::int64_t kChunk = 4096;

std::int64_t chunks_of(std::int64_t n) { return (n + kChunk - 1) / kChunk; }

template <class F>
void parallel_chunks(std::int64_t n_items, std::int64_t n, std::int64_t grain, F f) {
  const std::int64_t each = chunks_of(n);
  parallel_ranges(n_items * each, grain, [&](std::int64_t i, std::int64_t end) {
    for (; i < end; ++i) f(i / each, i, i % each * kChunk, std::min(n, (i % each + 1) * kChunk));
  }, 1);
}

// Items lie `stride` values apart in what is read, and next to each other in what is written.
void affine_coupling(Address x, std::int64_t x_stride, Address log_s, std::int64_t s_stride, Address t, std::int64_t t_stride,
                     Address y, Address sums, std::int64_t n_items, std::int64_t n) {
  std::vector<double> parts(n_items * chunks_of(n));
  parallel_chunks(n_items, n, kGrain / kChunk, [&](std::int64_t b, std::int64_t chunk, std::int64_t i, std::int64_t end) {
    parts[chunk] = kernels().affine_coupling((const float*)x + b * x_stride + i, (const float*)log_s + b * s_stride + i,
                                             (const float*)t + b * t_stride + i, (float*)y + b * n + i, end - i);
  });
  for (std::int64_t b = 0; b < n_items; ++b) {
    double sum = 0;
    for (std::int64_t c = 0; c < chunks_of(n); ++c) sum += parts[b * chunks_of(n) + c];
    ((float*)sums)[b] = float(sum);
  }
}

void affine_coupling_inverse(Address y, std::int64_t y_stride, Address log_s, std::int64_t s_stride, Address t,
                             std::int64_t t_stride, Address x, std::int64_t n_items, std::int64_t n) {
  parallel_chunks(n_items, n, kGrain / kChunk, [=](std::int64_t b, std::int64_t, std::int64_t i, std::int64_t end) {
    kernels().affine_coupling_inverse((const float*)y + b * y_stride + i, (const float*)log_s + b * s_stride + i,
                                      (const float*)t + b * t_stride + i, (float*)x + b * n + i, end - i);
  });
}

void affine_coupling_backward(Address dy, std::int64_t dy_stride, Address dsum, Address x, std::int64_t x_stride,
                              Address log_s, std::int64_t s_stride, Address dx, Address dlog_s, std::int64_t n_items,
                              std::int64_t n) {
  parallel_chunks(n_items, n, kGrain / kChunk, [=](std::int64_t b, std::int64_t, std::int64_t i, std::int64_t end) {
    kernels().affine_coupling_backward((const float*)dy + b * dy_stride + i, ((const float*)dsum)[b],
                                       (const float*)x + b * x_stride + i, (const float*)log_s + b * s_stride + i,
                                       (float*)dx + b * n + i, (float*)dlog_s + b * n + i, end - i);
  });
}

std::int64_t chunks_worth_a_thread(int C) { return std::max<std::int64_t>(1, kGrain / (kChunk * C)); }

void invertible_conv1x1(Address w, Address x, Address y, std::int64_t n_items, int C, std::int64_t T) {
  parallel_chunks(n_items, T, chunks_worth_a_thread(C), [=](std::int64_t b, std::int64_t, std::int64_t i, std::int64_t end) {
    kernels().invertible_conv1x1((const float*)w, (const float*)x + b * C * T, (float*)y + b * C * T, C, T, i, end);
  });
}

void invertible_conv1x1_backward(Address w, Address dy, Address x, Address dx, Address dw, std::int64_t n_items, int C,
                                 std::int64_t T) {
  std::vector<float> transposed(C * C);
  for (int i = 0; i < C; ++i)
    for (int j = 0; j < C; ++j) transposed[j * C + i] = ((const float*)w)[i * C + j];
  std::vector<double> parts(n_items * chunks_of(T) * C * C);
  parallel_chunks(n_items, T, chunks_worth_a_thread(C), [&](std::int64_t b, std::int64_t chunk, std::int64_t i, std::int64_t end) {
    kernels().invertible_conv1x1_backward(transposed.data(), (const float*)dy + b * C * T, (const float*)x + b * C * T,
                                          (float*)dx + b * C * T, parts.data() + chunk * C * C, C, T, i, end);
  });
  for (int k = 0; k < C * C; ++k) {
    double sum = 0;
    for (std::int64_t chunk = 0; chunk < n_items * chunks_of(T); ++chunk) sum += parts[chunk * C * C + k];
    ((float*)dw)[k] = float(sum);
  }
}

std::int64_t gated_residual_backward_bytes(int R, int H, int k, int n_threads) {
  fv::GatedResidualBackward job{};
  job.R = R, job.H = H, job.k = k;
  return job.workspace_floats(n_threads) * sizeof(float);
}

void gated_residual_backward(Address dx_out, Address dskip, Address u, Address a, Address w_in, Address w_out, Address z,
                             Address da, Address dx, Address dw_in, Address dw_out, Address du_sums, Address workspace,
                             std::int64_t B, std::int64_t T, int R, int H, int S, int k, std::int64_t dilation,
                             std::int64_t left, float rho, int n_threads) {
  using Job = fv::GatedResidualBackward;
  const auto in = [](Address at) { return (const float*)at; };
  const auto out = [](Address at) { return (float*)at; };
  const Job job{B, T, R, H, S, k, dilation, left, rho, in(dx_out), in(dskip), in(u), in(a), in(w_in), in(w_out), out(z),
                out(da), out(dx), out(dw_in), out(dw_out), out(du_sums), out(workspace)};
  for (const Job::Phase phase : {Job::kGate, Job::kInput, Job::kWeightsIn, Job::kWeightsOut}) {
    const bool tiles = phase == Job::kGate || phase == Job::kInput;
    const std::int64_t each = tiles ? Job::kTile * (R + S) * H : B * T * std::max(R, H);  // multiplications, at least
    const auto units = [&](int thread, std::int64_t first, std::int64_t last) {
      kernels().gated_residual_backward(job, phase, thread, first, last);
    };
    parallel_pieces(job.units(phase), 1 + 1000000 / std::max<std::int64_t>(each, 1), n_threads, units, 1);
  }
}

std::int64_t gated_residual_backward_tiles(std::int64_t T, int k, std::int64_t dilation) {
  fv::GatedResidualBackward job{};
  job.T = T, job.k = k, job.dilation = dilation;
  return job.input_tiles();
}

std::int64_t gated_residual_bf16_bytes(bool gradient, std::int64_t B, std::int64_t T, int R, int H, int S, int k, int n_threads) {
  fv::GatedResidualBf16 job{};
  job.B = B, job.T = T, job.R = R, job.H = H, job.S = S, job.k = k;
  return job.bytes(gradient, n_threads);
}

void run_bf16(const fv::GatedResidualBf16& job, int n_threads, std::initializer_list<fv::GatedResidualBf16::Phase> phases) {
  using Job = fv::GatedResidualBf16;
  const fv::CpuKernels& k = kernels();
  k.gated_residual_bf16_pack(job, *phases.begin() != Job::kForward);
  for (const Job::Phase phase : phases) {
    const std::int64_t each = phase == Job::kReduce ? job.shares() * job.k * job.R : Job::kTile * job.n_weights();
    const auto units = [&](int thread, std::int64_t first, std::int64_t last) { k.gated_residual_bf16(job, phase, thread, first, last); };
    parallel_pieces(job.units(phase), 1 + 1000000 / std::max<std::int64_t>(each, 1), n_threads, units, 1);
  }
}

void gated_residual_bf16(Address w_in, Address b_in, Address w_out, Address b_out, Address x, Address u, Address cond,
                         Address x_out, Address skip, Address a, Address workspace, std::int64_t B, std::int64_t T, int R, int H,
                         int S, int k, std::int64_t dilation, std::int64_t left, float rho, int n_threads) {
  using Half = fv::GatedResidualBf16::bf16;
  fv::GatedResidualBf16 job{B, T, R, H, S, k, dilation, left, rho};
  job.w_in = (const float*)w_in, job.b_in = (const float*)b_in, job.w_out = (const float*)w_out, job.b_out = (const float*)b_out;
  job.x = (const Half*)x, job.u = (const Half*)u, job.cond = (const Half*)cond;
  job.x_out = (Half*)x_out, job.skip = (Half*)skip, job.a = (Half*)a, job.workspace = (char*)workspace;
  run_bf16(job, n_threads, {fv::GatedResidualBf16::kForward});
}

void gated_residual_bf16_backward(Address w_in, Address w_out, Address dx_out, Address dskip, Address u, Address a, Address da,
                                  Address dx, Address dw_in, Address db_in, Address dw_out, Address db_out, Address du_sums,
                                  Address workspace, std::int64_t B, std::int64_t T, int R, int H, int S, int k,
                                  std::int64_t dilation, std::int64_t left, float rho, int n_threads) {
  using Job = fv::GatedResidualBf16;
  using Half = Job::bf16;
  Job job{B, T, R, H, S, k, dilation, left, rho};
  job.w_in = (const float*)w_in, job.w_out = (const float*)w_out;
  job.dx_out = (const Half*)dx_out, job.dskip = (const Half*)dskip, job.u = (const Half*)u, job.a = (Half*)a;
  job.da = (Half*)da, job.dx = (Half*)dx, job.dw_in = (float*)dw_in, job.db_in = (float*)db_in;
  job.dw_out = (float*)dw_out, job.db_out = (float*)db_out, job.du_sums = (float*)du_sums, job.workspace = (char*)workspace;
  run_bf16(job, n_threads, {Job::kGate, Job::kReduce, Job::kInput});
}

void upsample_fir(Address in, Address weight, Address out, std::int64_t n_frames, std::int64_t first_in,
                  std::int64_t first_out, std::int64_t n_out, int C, int scale, int n_taps, int freq_taps, int first,
                  float bias, float slope, int edge) {
  kernels().upsample_fir((const float*)in, (const float*)weight, (float*)out, n_frames, first_in, first_out, n_out, C, scale,
                         n_taps, freq_taps, first, bias, slope, edge);
}

void upsample_mix(Address in, Address weight, Address bias, Address out, std::int64_t n_frames, std::int64_t first_in,
                  std::int64_t first_out, std::int64_t n_out, int C, int C_out, int scale, int n_taps, int first, int edge) {
  kernels().upsample_mix((const float*)in, (const float*)weight, (const float*)bias, (float*)out, n_frames, first_in,
                         first_out, n_out, C, C_out, scale, n_taps, first, edge);
}

// ---- WaveNet -------------------------------------------------------------------------------------------------------

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

// The array under `name`, which must have this shape.
Floats field(const py::dict& weights, const char* name, std::vector<py::ssize_t> shape) {
  if (!weights.contains(name)) throw std::invalid_argument(std::string("WaveNetPlan: missing weights '") + name + "'");
  Floats a = py::cast<Floats>(weights[name]);
  if (std::vector<py::ssize_t>(a.shape(), a.shape() + a.ndim()) != shape)
    throw std::invalid_argument(std::string("WaveNetPlan: wrong shape of weights '") + name + "'");
  return a;
}

fv::WaveNetPlan* make_plan(const py::dict& sizes, const std::vector<int>& dilations, const py::dict& w, int precision,
                           int n_threads) {
  const auto size = [&](const char* name) { return sizes[name].cast<int>(); };
  fv::WaveNetPlan::Weights p{};
  const int L = p.n_layers = int(dilations.size()), k = p.kernel = size("kernel"), R = p.residual = size("residual");
  const int H = p.half_gate = size("half_gate"), S = p.skip = size("skip"), D = p.hidden = size("hidden");
  const int A = p.out = size("out"), C = p.n_mels = size("n_mels"), F = p.front_kernel = size("front_kernel");
  p.n_classes = size("n_classes");
  p.head = size("head");
  p.n_mix = size("n_mix");
  p.front_activation = size("front_activation");
  p.rho = sizes["rho"].cast<float>();
  p.dilations = dilations.data();
  const Floats front = field(w, "front", {F, p.n_classes ? p.n_classes : 1, R}), b_front = field(w, "b_front", {R}),
               in = field(w, "in", {L, 2 * H, R, k}), b_in = field(w, "b_in", {L, 2 * H}),
               cond = field(w, "cond", {L, 2 * H, C}), res = field(w, "res", {L, R, H}), b_res = field(w, "b_res", {L, R}),
               skip = field(w, "skip", {L, S, H}), b_skip = field(w, "b_skip", {S}), hidden = field(w, "hidden", {D, S}),
               b_hidden = field(w, "b_hidden", {D}), logits = field(w, "logits", {A, D}), b_logits = field(w, "b_logits", {A});
  p.front = front.data(), p.b_front = b_front.data(), p.in = in.data(), p.b_in = b_in.data(), p.cond = cond.data();
  p.res = res.data(), p.b_res = b_res.data(), p.skip_w = skip.data(), p.b_skip = b_skip.data();
  p.hidden_w = hidden.data(), p.b_hidden = b_hidden.data(), p.logits = logits.data(), p.b_logits = b_logits.data();
  return new fv::WaveNetPlan(p, precision, n_threads);
}

// Generates n_samples[i] samples of each stream. Addresses are lists with one entry a stream (empty: none).
// workspace: at least workspace_bytes; it needs no clearing.
void run_plan(const fv::WaveNetPlan& plan, const std::vector<Address>& streams, const std::vector<int>& n_samples,
              const std::vector<Address>& cond, bool layer_cond, int cond_width, int half_gate,
              const std::vector<Address>& noise, const std::vector<Address>& forced, const std::vector<Address>& out,
              const std::vector<Address>& parameters, Address workspace, int n_threads) {
  const fv::CpuKernels& k = kernels();
  const int n = int(streams.size());
  const auto pointers = [](const std::vector<Address>& a) { return a.empty() ? nullptr : (const float* const*)a.data(); };
  fv::WaveNetJob job{};
  job.layer_cond = layer_cond;
  job.cond_ld = cond_width;
  job.true_H = half_gate;
  // More streams than threads: each thread takes its own streams and they never meet. Else they share every product.
  const int groups = n >= n_threads ? n_threads : 1, team = groups > 1 ? 1 : n_threads;
  struct Context {
    const fv::CpuKernels& kernels;
    const fv::WaveNet& net;
    std::vector<fv::WaveNetJob> jobs;
    fv::Barrier barrier;
    int team;
  } context{k, plan.net(), {}, fv::Barrier(team), team};
  char* space = (char*)workspace;
  for (int g = 0; g < groups; ++g) {
    const int first = n * g / groups, last = n * (g + 1) / groups;
    fv::WaveNetJob part = job;
    part.n_streams = last - first;
    part.streams = (fv::WaveNetStream* const*)streams.data() + first;
    part.n_samples = n_samples.data() + first;
    const auto from = [&](const std::vector<Address>& a) { return pointers(a) ? pointers(a) + first : nullptr; };
    part.cond = from(cond), part.noise = from(noise), part.forced = from(forced);
    part.out = (float* const*)from(out), part.parameters = (float* const*)from(parameters);
    part.workspace = space;
    const std::int64_t bytes = k.wavenet_workspace(plan.net(), part.n_streams, team);
    std::memset(space, 0, bytes);  // padded channels must be zero
    space += bytes;
    context.jobs.push_back(part);
  }
  fv::run_team(groups > 1 ? groups : team, [](void* p, int i) {
    Context& c = *static_cast<Context*>(p);
    const bool shared = c.jobs.size() == 1;
    c.kernels.wavenet_generate(c.net, c.jobs[shared ? 0 : i], shared ? i : 0, c.team, c.barrier);
  }, &context);
}

std::int64_t workspace_bytes(const fv::WaveNetPlan& plan, int n_streams, int n_threads) {
  const int groups = n_streams >= n_threads ? n_threads : 1;
  std::int64_t bytes = 0;
  for (int g = 0; g < groups; ++g)
    bytes += kernels().wavenet_workspace(plan.net(), n_streams * (g + 1) / groups - n_streams * g / groups,
                                         groups > 1 ? 1 : n_threads);
  return bytes;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastvoc's compiled kernels. Private: arguments are checked by the Python layer.";

  set_isa(widest_isa());
  m.def("cpu_isas", [] {
    py::list rows;
    for (int i = 0; i < fv::isa_count(); ++i) {
      const fv::Isa& isa = fv::isa(i);
      rows.append(py::make_tuple(isa.kernels->name, isa.supported, isa.emulated, isa.reason ? isa.reason : ""));
    }
    return rows;
  }, "(name, supported, emulated, reason) of every instruction set that was built, weakest first");
  m.def("cpu_isa", [] { return kernels().name; });
  m.def("set_cpu_isa", set_isa);
  m.def("set_num_threads", [](int n) { threads = n; });
  m.def("get_num_threads", [] { return threads.load(); });

  m.def("affine_coupling_cpu", affine_coupling, nogil());
  m.def("affine_coupling_inverse_cpu", affine_coupling_inverse, nogil());
  m.def("affine_coupling_backward_cpu", affine_coupling_backward, nogil());
  m.def("gated_activation_cpu", gated_activation, nogil());
  m.def("gated_activation_backward_cpu", gated_activation_backward, nogil());
  m.def("gated_residual_backward_cpu", gated_residual_backward, nogil());
  m.def("gated_residual_backward_bytes", gated_residual_backward_bytes);
  m.def("gated_residual_backward_tiles", gated_residual_backward_tiles);
  m.def("gated_residual_bf16_unit", [] { return std::max(kernels().stack_layout.lanes, kernels().stack_layout.inputs_bf16); });
  m.def("gated_residual_bf16_tile", [] { return fv::GatedResidualBf16::kTile; });
  m.def("gated_residual_bf16_bytes", gated_residual_bf16_bytes);
  m.def("gated_residual_bf16_cpu", gated_residual_bf16, nogil());
  m.def("gated_residual_bf16_backward_cpu", gated_residual_bf16_backward, nogil());
  m.def("invertible_conv1x1_cpu", invertible_conv1x1, nogil());
  m.def("invertible_conv1x1_backward_cpu", invertible_conv1x1_backward, nogil());
  m.def("upsample_fir_cpu", upsample_fir, nogil());
  m.def("upsample_mix_cpu", upsample_mix, nogil());
  m.def("elementary_cpu", [](int function, Address x, Address y, std::int64_t n) {
    kernels().elementary(function, (const float*)x, (float*)y, n);
  }, nogil());

  py::class_<fv::WaveNetPlan>(m, "WaveNetPlan")
      .def(py::init(&make_plan))
      .def_property_readonly("state_bytes", [](const fv::WaveNetPlan& p) { return p.net().state_bytes; })
      .def_property_readonly("packed_bytes", &fv::WaveNetPlan::packed_bytes)
      .def("workspace_bytes", workspace_bytes)
      .def("begin", [](const fv::WaveNetPlan& p, Address state, std::uint64_t seed, std::uint32_t stream, float temperature,
                       float initial, Address speaker) {
        p.begin((fv::WaveNetStream*)state, seed, stream, temperature, initial, (const float*)speaker);
      })
      .def("run", run_plan, nogil());

  bind_gated_residual_stack(m);
}
