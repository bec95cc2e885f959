#include "base/config.hpp"

#include <cmath>
#include <cstdlib>
#include <functional>

#include "base/error.hpp"

namespace xccl {
namespace {

struct Setting {
  const char* name;
  const char* default_value;
  const char* doc;
  std::function<void(Config&, const Setting&, const std::string&)> read;
};

[[noreturn]] void reject(const Setting& setting, const std::string& value, const char* expected) {
  fail(Status::InvalidArgument, "environment variable ", setting.name, "=\"", value, "\": expected ",
       expected);
}

double number(const Setting& setting, const std::string& value, double lowest, const char* expected) {
  char* end = nullptr;
  const double parsed = std::strtod(value.c_str(), &end);
  if (end == value.c_str() || *end != '\0' || !std::isfinite(parsed) || parsed < lowest)
    reject(setting, value, expected);
  return parsed;
}

bool flag(const Setting& setting, const std::string& value) {
  if (value == "1") return true;
  if (value == "0") return false;
  reject(setting, value, "0 or 1");
}

uint64_t bytes(const Setting& setting, const std::string& value) {
  char* end = nullptr;
  const double parsed = std::strtod(value.c_str(), &end);
  const std::string unit = end;
  const double scale = unit.empty()  ? 1
                       : unit == "K" ? 1024.0
                       : unit == "M" ? 1048576.0
                       : unit == "G" ? 1073741824.0
                       : unit == "T" ? 1099511627776.0
                                     : 0;
  if (end == value.c_str() || scale == 0 || !(parsed >= 0 && parsed * scale < 9e18))
    reject(setting, value, "a number of bytes, with K, M, G or T if you like");
  return static_cast<uint64_t>(parsed * scale);
}

const std::vector<Setting>& settings() {
  static const std::vector<Setting> table = {
      {"XCCL_PROVIDER", "posix_shm", "global shared memory to use: posix_shm (processes) or local (threads)",
       [](Config& c, const Setting&, const std::string& v) { c.provider = v; }},
      {"XCCL_DIRECT", "1", "0: move everything by put, get and signal, as on memory the host cannot address",
       [](Config& c, const Setting& s, const std::string& v) { c.direct = flag(s, v); }},
      {"XCCL_TIMEOUT", "30", "default deadline of a call, in seconds",
       [](Config& c, const Setting& s, const std::string& v) {
         c.timeout = number(s, v, 1e-3, "seconds, at least 0.001");
       }},
      {"XCCL_STARTUP_TIMEOUT", "120", "deadline for all ranks to meet, in seconds",
       [](Config& c, const Setting& s, const std::string& v) {
         c.startup_timeout = number(s, v, 1e-3, "seconds, at least 0.001");
       }},
      {"XCCL_ADDRESS_SPACE", "0",
       "address space reserved per rank, e.g. 64G; 0: chosen from the number of ranks and ulimit -v",
       [](Config& c, const Setting& s, const std::string& v) { c.address_space = bytes(s, v); }},
      {"XCCL_SPIN_US", "-1",
       "how long a wait spins before it yields, in microseconds; -1: chosen from cores and ranks",
       [](Config& c, const Setting& s, const std::string& v) {
         c.spin_us = static_cast<int64_t>(number(s, v, -1, "-1 or microseconds"));
       }},
      {"XCCL_HUGE_PAGES", "1", "0: do not ask the kernel for huge pages",
       [](Config& c, const Setting& s, const std::string& v) { c.huge_pages = flag(s, v); }},
      {"XCCL_EAGER_LIMIT", "8192",
       "bytes up to which a send is buffered and returns; at most 256K, less with more than 16 ranks",
       [](Config& c, const Setting& s, const std::string& v) { c.eager_limit = bytes(s, v); }},
      {"XCCL_KERNELS", "auto", "instruction set of the row kernels: auto, generic, avx2 or avx512",
       [](Config& c, const Setting&, const std::string& v) { c.kernels = v; }},
      {"XCCL_PROGRESS_THREAD", "0",
       "1: a thread goes on with what has been started (isend, irecv, dispatch_async, combine_async) "
       "while the program computes; for hosts with cores to spare",
       [](Config& c, const Setting& s, const std::string& v) { c.progress_thread = flag(s, v); }},
      {"XCCL_TRACE", "",
       "file for a trace that Perfetto shows, one a rank: %r becomes the rank, else it goes before the "
       "ending; "
       "%p becomes the process id; empty: none",
       [](Config& c, const Setting&, const std::string& v) { c.trace = v; }},
  };
  return table;
}

}  // namespace

Config Config::from_environment() {
  Config config;
  for (const Setting& setting : settings())
    if (const char* value = std::getenv(setting.name); value && *value) setting.read(config, setting, value);
  return config;
}

std::vector<ConfigEntry> config_table() {
  std::vector<ConfigEntry> out;
  for (const Setting& setting : settings()) {
    const char* value = std::getenv(setting.name);
    out.push_back(
        {setting.name, value && *value ? value : setting.default_value, setting.default_value, setting.doc});
  }
  return out;
}

}  // namespace xccl
