// GatedResidualStackPlan for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "core/gated_residual_stack.h"
#include "core/isa.h"
#include "core/parallel.h"

namespace py = pybind11;
namespace fv = fastvoc;
using Address = std::uintptr_t;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

namespace {

const fv::CpuKernels& kernels_of(const std::string& isa) {
  for (int i = 0; i < fv::isa_count(); ++i)
    if (isa == fv::isa(i).kernels->name && fv::isa(i).supported) return *fv::isa(i).kernels;
  throw std::invalid_argument("unknown or unsupported instruction set '" + isa + "'");
}

fv::GatedResidualStackPlan* make_plan(const Floats& in, const Floats& b_in, const Floats& cond, const Floats& out,
                                      const Floats& b_out, const std::vector<int>& dilations, bool causal, float rho,
                                      bool step_in_residual, int precision, const std::string& isa) {
  const auto require = [](const Floats& a, std::vector<py::ssize_t> shape, const char* name) {
    if (std::vector<py::ssize_t>(a.shape(), a.shape() + a.ndim()) != shape)
      throw std::invalid_argument(std::string("GatedResidualStackPlan: wrong shape of ") + name);
  };
  if (in.ndim() != 4 || cond.ndim() != 3 || out.ndim() != 3)
    throw std::invalid_argument("GatedResidualStackPlan: w_in must have 4 dimensions, w_cond and w_out 3");
  const py::ssize_t L = py::ssize_t(dilations.size()), H = in.shape(1) / 2, R = in.shape(2), k = in.shape(3);
  const py::ssize_t C = cond.shape(2), S = out.shape(1) - R;
  require(in, {L, 2 * H, R, k}, "w_in");
  require(b_in, {L, 2 * H}, "b_in");
  require(cond, {L, 2 * H, C}, "w_cond");
  require(out, {L, R + S, H}, "w_out");
  require(b_out, {L, R + S}, "b_out");
  if (L < 1 || H < 1 || R < 1 || k < 1 || S < 0) throw std::invalid_argument("GatedResidualStackPlan: a size is too small");
  fv::GatedResidualStackPlan::Weights w{};
  w.n_layers = int(L), w.kernel = int(k), w.R = int(R), w.H = int(H), w.S = int(S), w.C = int(C);
  w.causal = causal, w.step_in_residual = step_in_residual, w.rho = rho;
  w.dilations = dilations.data();
  w.in = in.data(), w.b_in = b_in.data(), w.cond = cond.data(), w.out = out.data(), w.b_out = b_out.data();
  py::gil_scoped_release release;
  return new fv::GatedResidualStackPlan(w, precision, kernels_of(isa));
}

fv::GatedResidualJob job_of(std::int64_t B, std::int64_t T) {
  fv::GatedResidualJob job{};
  job.B = B, job.T = T;
  return job;
}

// No more threads than have some work: a barrier a layer costs more than a few rows.
int team_of(const fv::GatedResidualJob& job, int n_threads) {
  constexpr std::int64_t kRows = 32;
  return int(std::max<std::int64_t>(1, std::min<std::int64_t>(n_threads, job.B * job.T / kRows)));
}

void run_job(const fv::GatedResidualStackPlan& plan, const fv::GatedResidualJob& job, int n_threads) {
  const int team = team_of(job, n_threads);
  struct Context {
    const fv::GatedResidualStackPlan& plan;
    const fv::GatedResidualJob& job;
    int team;
    fv::Barrier barrier;
    fv::Shares shares;
  } context{plan, job, team, fv::Barrier(team), fv::Shares(team)};
  fv::run_team(team, [](void* p, int thread) {
    Context& c = *static_cast<Context*>(p);
    c.plan.kernels().gated_residual_stack(c.plan.stack(), c.job, thread, c.team, c.barrier, c.shares);
  }, &context);
}

void run(const fv::GatedResidualStackPlan& plan, int first_layer, int last_layer, std::int64_t B, std::int64_t T, Address x,
         Address cond, Address step, Address out, Address workspace, int n_threads, int n_projected, std::int64_t n_frames,
         Address projection, Address first, Address taps, int n_taps, bool cond_apart) {
  fv::GatedResidualJob job = job_of(B, T);
  job.n_projected = n_projected, job.n_frames = n_frames, job.projection = (float*)projection;
  job.first = (const std::int32_t*)first, job.taps = (const float*)taps, job.n_taps = n_taps, job.cond_apart = cond_apart;
  job.first_layer = first_layer, job.last_layer = last_layer;
  job.x = (const float*)x, job.cond = (const float*)cond, job.step = (const float*)step;
  job.out = (float*)out, job.workspace = (char*)workspace;
  run_job(plan, job, n_threads);
}

void project(const fv::GatedResidualStackPlan& plan, int first_layer, int last_layer, std::int64_t B, std::int64_t n_frames,
             Address cond, Address projection, Address workspace, int n_threads) {
  fv::GatedResidualJob job = job_of(B, n_frames);
  job.first_layer = first_layer, job.last_layer = last_layer, job.project = true;
  job.cond = (const float*)cond, job.projection = (float*)projection, job.workspace = (char*)workspace;
  run_job(plan, job, n_threads);
}

// A stack of one layer without conditioning of its own, with what the gradient needs.
void run_layer(const fv::GatedResidualStackPlan& plan, std::int64_t B, std::int64_t T, Address x, Address added,
               Address step, Address x_next, Address skip, Address a, Address workspace, int n_threads) {
  fv::GatedResidualJob job = job_of(B, T);
  job.last_layer = 1;
  job.x = (const float*)x, job.added = (const float*)added, job.step = (const float*)step;
  job.a = (float*)a, job.workspace = (char*)workspace;
  if (plan.stack().S) job.out = (float*)skip, job.x_next = (float*)x_next;
  else job.out = (float*)x_next;
  run_job(plan, job, n_threads);
}

}  // namespace

void bind_gated_residual_stack(py::module_& m) {
  py::class_<fv::GatedResidualStackPlan>(m, "GatedResidualStackPlan")
      .def(py::init(&make_plan))
      .def_property_readonly("isa", [](const fv::GatedResidualStackPlan& p) { return p.kernels().name; })
      .def_property_readonly("packed_bytes", &fv::GatedResidualStackPlan::packed_bytes)
      .def("workspace_bytes", [](const fv::GatedResidualStackPlan& p, std::int64_t B, std::int64_t T, int n_threads) {
        const fv::GatedResidualJob job = job_of(B, T);
        return p.kernels().gated_residual_stack_workspace(p.stack(), job, team_of(job, n_threads));
      })
      .def_property_readonly("gate_width", [](const fv::GatedResidualStackPlan& p) { return 2 * p.stack().z_width; })
      .def("project", project, py::call_guard<py::gil_scoped_release>())
      .def("run", run, py::call_guard<py::gil_scoped_release>())
      .def("run_layer", run_layer, py::call_guard<py::gil_scoped_release>());
}
