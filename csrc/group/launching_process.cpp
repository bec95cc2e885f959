#include "group/launching_process.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>

#include "base/text.hpp"

namespace xccl {
namespace {

std::optional<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// Places in /proc/PID/stat counted after the name, which may itself hold spaces and brackets.
constexpr int parent_place = 1, start_place = 19;

uint64_t stat_field(uint64_t pid, int place) {
  const auto stat = read_file(text("/proc/", pid, "/stat"));
  if (!stat) return 0;
  const size_t name_end = stat->rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(stat->substr(name_end + 1));
  std::string field;
  for (int i = 0; i <= place; ++i) fields >> field;
  return std::strtoull(field.c_str(), nullptr, 10);
}

// The values of these variables in a process, as it was started; nothing for another user's process, which cannot be
// part of this rank.
std::optional<Environment> variables_of(uint64_t pid, const std::vector<std::string>& names) {
  const auto all = read_file(text("/proc/", pid, "/environ"));
  if (!all || all->empty()) return std::nullopt;
  Environment found;
  for (size_t begin = 0; begin < all->size();) {
    const size_t end = std::min(all->find('\0', begin), all->size());
    const std::string entry = all->substr(begin, end - begin);
    for (const std::string& name : names)
      if (entry.size() > name.size() && entry[name.size()] == '=' && entry.compare(0, name.size(), name) == 0)
        found[name] = entry.substr(name.size() + 1);
    begin = end + 1;
  }
  return found;
}

}  // namespace

std::string launching_process(const Environment& environment, const std::vector<std::string>& names) {
  Environment wanted;
  for (const std::string& name : names)
    if (const auto entry = environment.find(name); entry != environment.end()) wanted.insert(*entry);
  auto pid = static_cast<uint64_t>(getppid());
  while (pid > 1 && variables_of(pid, names) == wanted) pid = stat_field(pid, parent_place);
  // Process ids come again, and containers that share a network each have their own: so also the start and the id
  // space in which the number is meant.
  struct stat space{};
  stat("/proc/self/ns/pid", &space);
  return text(pid, " started ", stat_field(pid, start_place), " in ", space.st_ino);
}

}  // namespace xccl
