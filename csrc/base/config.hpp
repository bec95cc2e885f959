// The table of settings that come from the environment: every XCCL_ variable the core reads, with its
// default and its meaning, in one place. `python -m xccl doctor` prints it.
// Read when a communicator starts. Not here: who this rank is (group/launch_environment.hpp).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace xccl {

struct Config {
  std::string provider = "posix_shm";
  bool direct = true;              // false: everything goes through put, get and signal
  double timeout = 30.0;           // seconds; default deadline of a call
  double startup_timeout = 120.0;  // seconds; deadline of init
  uint64_t address_space = 0;      // bytes reserved per rank; 0: chosen from ranks and ulimit -v
  int64_t spin_us = -1;            // how long a wait spins; -1: chosen from cores and ranks
  bool huge_pages = true;
  uint64_t eager_limit = 8192;  // bytes; larger messages are announced. The most: ChannelLayout
  std::string kernels = "auto";
  bool progress_thread = false;
  std::string trace;  // file for a trace of this rank, see base/trace.hpp; "": none

  // Reads the environment. Throws InvalidArgument naming the variable when a value cannot be understood.
  static Config from_environment();
};

struct ConfigEntry {
  std::string name, value, default_value, doc;
};

// The table with the values in force now.
std::vector<ConfigEntry> config_table();

}  // namespace xccl
