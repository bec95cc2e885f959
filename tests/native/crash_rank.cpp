// One rank of the crash matrix (tests/crash_matrix.py, which starts these and reads what they say): a process that
// runs a scenario with the others, and at a named step is killed, stopped or made to fail. What comes back is checked
// against what must have been sent; then the ranks that are left shrink, and the new communicator must work.
//
//   crash_rank SCENARIO JOB RANK SIZE     XCCL_TEST_CRASH=rank:step:occurrence:action, action: kill, stop, error
//
// Says, one a line: "reached NS" by the rank that comes to its step; "error OP STATUS RANKS NS TEXT" for the first error
// of the scenario; "members RANKS" once everything has worked again among those; "ended". What is wrong goes to stderr.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/test_point.hpp"
#include "collective/all_gather.hpp"
#include "collective/all_reduce.hpp"
#include "collective/all_to_all.hpp"
#include "collective/barrier.hpp"
#include "collective/broadcast.hpp"
#include "collective/reduce_scatter.hpp"
#include "collective/split.hpp"
#include "group/shrink.hpp"
#include "moe/expert_parallel.hpp"
#include "p2p/point_to_point.hpp"

using namespace xccl;

namespace {

#define REQUIRE(condition)                                                               \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::exit(3);                                                                      \
    }                                                                                    \
  } while (false)

// --- The crash ---------------------------------------------------------------------------------------

struct Crash {
  int rank = -1;
  std::string step, action;
  int occurrence = 0;

  static Crash from_environment() {
    Crash crash;
    const char* text = std::getenv("XCCL_TEST_CRASH");
    if (!text) return crash;
    char step[64], action[16];
    REQUIRE(std::sscanf(text, "%d:%63[^:]:%d:%15s", &crash.rank, step, &crash.occurrence, action) == 4);
    crash.step = step;
    crash.action = action;
    return crash;
  }
};

Crash crash;
int steps_to_go = 0;  // of the crash; 0: it has been, or will not be
int job_rank = 0;

void come_to(const char* step) {
  if (steps_to_go == 0 || crash.step != step || --steps_to_go > 0) return;
  std::printf("reached %llu\n", static_cast<unsigned long long>(now_ns()));
  std::fflush(stdout);
  if (crash.action == "kill") kill(getpid(), SIGKILL);
  if (crash.action == "stop") raise(SIGSTOP);
  if (crash.action == "error") fail(Status::Failure, "made to fail at ", step);
}

bool crashes_here() { return crash.rank == job_rank; }
bool has_failed() { return crashes_here() && crash.action == "error" && steps_to_go == 0; }

// --- What is sent ------------------------------------------------------------------------------------

int item(int rank, size_t index) { return rank * 1'000'003 + static_cast<int>(index); }

std::vector<int> items(int rank, size_t count, size_t first = 0) {
  std::vector<int> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = item(rank, first + i);
  return out;
}

void require_items(const int* data, int rank, size_t count, size_t first = 0) {
  for (size_t i = 0; i < count; ++i) REQUIRE(data[i] == item(rank, first + i));
}

// --- The scenarios -----------------------------------------------------------------------------------

// What a rank works with. The last barrier is made, and those that are left are found, on `current`.
struct Session {
  std::shared_ptr<Communicator> comm, current;
  std::unique_ptr<PointToPoint> p2p;

  int rank() const { return comm->rank(); }
  int size() const { return comm->size(); }
  // An array of the application area, until the process ends.
  int* shared(size_t count, int owner) const {
    int* out = reinterpret_cast<int*>(comm->world().heap().allocate(4 * count));
    for (size_t i = 0; i < count; ++i) out[i] = item(owner, i);
    return out;
  }
};

constexpr int tag = 5, go_tag = 9;
constexpr size_t little = 4, some = 1024, much = 256 * 1024, plenty = 4 * 1024 * 1024;  // numbers of 4 bytes

void nap(double seconds) { usleep(static_cast<useconds_t>(seconds * 1e6)); }

void send_items(Session& s, size_t count) {
  const auto data = items(0, count);
  s.p2p->send(data.data(), 4 * count, 1, tag);
}

void receive_items(Session& s, size_t count) {
  std::vector<int> in(count, -1);
  const MessageInfo info = s.p2p->recv(in.data(), 4 * count, 0, tag);
  REQUIRE(info.source == 0 && info.tag == tag && info.bytes == 4 * count);
  require_items(in.data(), 0, count);
}

// Rank 0 sends to rank 1; the others wait in the barrier that follows.
void message(Session& s, size_t count) {
  if (s.rank() == 0) send_items(s, count);
  if (s.rank() == 1) receive_items(s, count);
}

void inlined(Session& s) { message(s, little); }
void eager(Session& s) { message(s, some); }
void streamed(Session& s) { message(s, much); }

// From the application area, by a sender that waits and so helps to copy.
void helped(Session& s) {
  if (s.rank() == 0) s.p2p->send(s.shared(much, 0), 4 * much, 1, tag);
  if (s.rank() == 1) receive_items(s, much);
}

void pulled(Session& s) {
  if (s.rank() == 0) s.p2p->wait(*s.p2p->isend(s.shared(much, 0), 4 * much, 1, tag));
  if (s.rank() == 1) receive_items(s, much);
}

void borrow(Session& s, size_t count) {
  const auto view = s.p2p->recv_view(0, tag);
  require_items(reinterpret_cast<const int*>(view->data), 0, count);
  view->released = true;  // the sender is told when this rank makes progress
}

void viewed(Session& s) {
  if (s.rank() == 0) s.p2p->wait(*s.p2p->isend(s.shared(much, 0), 4 * much, 1, tag));
  if (s.rank() == 1) borrow(s, much);  // tells the sender, which waits for that, in the barrier
}

void viewed_eager(Session& s) {
  if (s.rank() == 0) send_items(s, some);
  if (s.rank() != 1) return;
  borrow(s, some);
  s.p2p->iprobe(any_source, any_tag);  // any call tells the sender
}

template <class Call>
void require_timeout(Call call) {
  try {
    call();
  } catch (const Error& error) {
    if (error.status != Status::Timeout) throw;
    return;
  }
  REQUIRE(!"a call that nobody answers has returned");
}

// Announced in vain, taken back, and sent again.
void withdrawn(Session& s) {
  const auto data = items(0, much);
  if (s.rank() == 0) {
    require_timeout([&] { s.p2p->send(items(7, much).data(), 4 * much, 1, tag, 0.1); });
    s.p2p->send(data.data(), 4 * little, 1, go_tag);
    s.p2p->send(data.data(), 4 * much, 1, tag);
  }
  if (s.rank() == 1) {
    std::vector<int> in(little);
    s.p2p->recv(in.data(), 4 * little, 0, go_tag);
    receive_items(s, much);
  }
}

// The sender gives up in the middle of the stream, which goes on without it.
void detached(Session& s) {
  if (s.rank() == 0) {
    auto data = items(0, plenty);
    for (bool sent = false; !sent;) {
      try {
        s.p2p->send(data.data(), 4 * plenty, 1, tag, 0.3);
        sent = true;
      } catch (const Error& error) {
        if (error.status != Status::Timeout) throw;  // the receiver had not come yet
      }
    }
    std::fill(data.begin(), data.end(), -1);
  }
  if (s.rank() == 1) {
    std::vector<int> in(plenty, -1);
    const auto request = s.p2p->irecv(in.data(), 4 * plenty, 0, tag);
    while (request->state != Request::State::moving && !s.p2p->test(*request)) sched_yield();
    nap(0.6);
    s.p2p->wait(*request);
    require_items(in.data(), 0, plenty);
  }
}

// The receiver gives up in the middle of the stream, and gets the message by the next receive.
void kept(Session& s) {
  if (s.rank() == 0) {
    const auto data = items(0, much);
    const auto request = s.p2p->isend(data.data(), 4 * much, 1, tag);
    nap(0.6);  // sends nothing meanwhile
    s.p2p->wait(*request);
  }
  if (s.rank() == 1) {
    s.p2p->probe(0, tag);
    std::vector<int> in(much, -1);
    require_timeout([&] { s.p2p->recv(in.data(), 4 * much, 0, tag, 0.1); });
    receive_items(s, much);
  }
}

void gather_alike(Session& s, const int* mine, size_t count) {
  std::vector<int> all(count * static_cast<size_t>(s.size()), -1);
  all_gather(*s.comm, mine, all.data(), 4 * count);
  for (int member = 0; member < s.size(); ++member)
    require_items(all.data() + static_cast<size_t>(member) * count, member, count);
}

void all_gathered(Session& s) { gather_alike(s, items(s.rank(), some).data(), some); }
void all_gathered_lent(Session& s) { gather_alike(s, s.shared(much, s.rank()), much); }

void all_gathered_v(Session& s) {
  const auto rows_of = [](int member) { return static_cast<uint64_t>(100 * (member + 1)); };
  uint64_t total = 0;
  for (int member = 0; member < s.size(); ++member) total += rows_of(member);
  std::vector<int> all(total, -1);
  std::vector<uint64_t> counts(static_cast<size_t>(s.size()));
  all_gather_v(*s.comm, items(s.rank(), rows_of(s.rank())).data(), rows_of(s.rank()), 4,
               room_in(all.data(), total), counts.data());
  const int* at = all.data();
  for (int member = 0; member < s.size(); at += rows_of(member++)) {
    REQUIRE(counts[static_cast<size_t>(member)] == rows_of(member));
    require_items(at, member, rows_of(member));
  }
}

void all_to_alled(Session& s) {
  const auto size = static_cast<size_t>(s.size());
  std::vector<int> all(some * size, -1);
  all_to_all(*s.comm, items(s.rank(), some * size).data(), all.data(), 4 * some);
  for (int member = 0; member < s.size(); ++member)
    require_items(all.data() + static_cast<size_t>(member) * some, member, some,
                  static_cast<size_t>(s.rank()) * some);
}

void all_to_alled_v(Session& s) {  // every rank gives rank r 50 * (r + 1) rows
  std::vector<uint64_t> given, got(static_cast<size_t>(s.size()));
  uint64_t total = 0, before = 0;
  for (int member = 0; member < s.size(); ++member) {
    given.push_back(50 * (static_cast<uint64_t>(member) + 1));
    if (member < s.rank()) before += given.back();
    total += given.back();
  }
  const uint64_t each = given[static_cast<size_t>(s.rank())];
  std::vector<int> all(each * static_cast<uint64_t>(s.size()), -1);
  all_to_all_v(*s.comm, items(s.rank(), total).data(), given.data(), 4, room_in(all.data(), all.size()),
               got.data());
  for (int member = 0; member < s.size(); ++member) {
    REQUIRE(got[static_cast<size_t>(member)] == each);
    require_items(all.data() + static_cast<size_t>(member) * each, member, each, before);
  }
}

void broadcasted(Session& s) {
  auto data = items(s.rank(), some);
  broadcast(*s.comm, data.data(), 4 * some, 0);
  require_items(data.data(), 0, some);
}

// Sums of small whole numbers are exact.
float number(int rank, size_t index) {
  return static_cast<float>(rank + 1) * static_cast<float>(index % 100);
}

std::vector<float> numbers(int rank, size_t count) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = number(rank, i);
  return out;
}

void require_sum(Session& s, const std::vector<float>& out, size_t first) {
  const auto weight = static_cast<float>(s.size() * (s.size() + 1) / 2);
  for (size_t i = 0; i < out.size(); ++i) REQUIRE(out[i] == weight * number(0, first + i));
}

void all_reduced(Session& s) {
  std::vector<float> out(much, -1);
  all_reduce(*s.comm, numbers(s.rank(), much).data(), out.data(), much, ElementType::float32, ReduceOp::sum);
  require_sum(s, out, 0);
}

void reduce_scattered(Session& s) {
  std::vector<float> out(some, -1);
  reduce_scatter(*s.comm, numbers(s.rank(), some * static_cast<size_t>(s.size())).data(), out.data(), some,
                 ElementType::float32, ReduceOp::sum);
  require_sum(s, out, some * static_cast<size_t>(s.rank()));
}

void reduce_scattered_v(Session& s) {
  std::vector<uint64_t> counts;
  uint64_t total = 0, before = 0;
  for (int member = 0; member < s.size(); ++member) {
    counts.push_back(40 * (static_cast<uint64_t>(member) + 1));
    if (member < s.rank()) before += counts.back();
    total += counts.back();
  }
  std::vector<float> out(counts[static_cast<size_t>(s.rank())], -1);
  reduce_scatter_v(*s.comm, numbers(s.rank(), total).data(), out.data(), counts.data(), 1,
                   ElementType::float32, ReduceOp::sum);
  require_sum(s, out, before);
}

void barriers(Session& s) { barrier(*s.comm); }

// The rank that comes to grief is also the one that disagrees: so every error names it alone.
void disagreeing(Session& s) {
  const auto mine = items(s.rank(), little);
  std::vector<int> all(little * static_cast<size_t>(s.size()));
  all_gather(*s.comm, mine.data(), all.data(), s.rank() == 1 ? sizeof(int) : 4 * little);
}

void split_all(Session& s) {
  const auto group = split(s.comm, 0, -s.rank());  // in reversed order
  REQUIRE(group->size() == s.size() && group->rank() == s.size() - 1 - s.rank());
  barrier(*group);
  group->close();
}

// A dispatch to two experts of each token and the combination of the unchanged rows. With token_ranks only the first
// ranks have tokens, and only the others experts.
void dispatch_and_combine(Session& s, int token_ranks, bool halves) {
  constexpr int64_t most = 16, hidden = 64, topk = 2;
  EpShape shape{2 * s.size(), hidden, most, topk};
  shape.token_ranks = token_ranks;
  ExpertParallel ep(s.comm, shape);
  const int64_t tokens = token_ranks == 0 || s.rank() < token_ranks ? most : 0;
  std::vector<int64_t> experts;
  std::vector<float> weights, x;
  const auto value = [](int rank, int64_t token, int64_t h) {
    return static_cast<float>(4 * (1000 * rank + 10 * token + h));
  };
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t slot = 0; slot < topk; ++slot) {
      experts.push_back((s.rank() + token + 3 * slot) % shape.num_experts);
      weights.push_back(slot == 0 ? 0.5F : 0.25F);
    }
    for (int64_t h = 0; h < hidden; ++h) x.push_back(value(s.rank(), token, h));
  }
  const TopK to{experts.data(), true, weights.data(), tokens};
  if (halves) ep.start_dispatch(x.data(), to, nullptr, -1);
  auto d = halves ? ep.finish_dispatch(-1) : ep.dispatch(x.data(), to, nullptr, -1);
  const auto* rows = reinterpret_cast<const float*>(d->lease->slot().x.base());
  for (uint64_t row = 0; row < d->rows(); ++row)
    for (int64_t h = 0; h < hidden; ++h)
      REQUIRE(rows[static_cast<int64_t>(row) * hidden + h] ==
              value(d->routing->src_rank[row], d->routing->src_token[row], h));
  std::vector<float> y(x.size(), -1);
  if (halves) {
    ep.start_combine(rows, *d, nullptr, y.data(), -1);
    ep.finish_combine(-1);
  } else {
    ep.combine(rows, *d, nullptr, y.data(), -1);
  }
  for (size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == 0.75F * x[i]);
  d.reset();
  ep.close();
}

void moe(Session& s) { dispatch_and_combine(s, 0, false); }
void moe_apart(Session& s) { dispatch_and_combine(s, 1, true); }

// Nothing has failed before: a rank that goes meanwhile is left out, or is found to be gone in the new communicator.
void shrinking(Session& s) {
  s.current = shrink(s.comm);
  barrier(*s.current);
}

// One rank closes while the others wait for it.
void closing(Session& s) {
  if (!crashes_here()) return;
  s.p2p->close();
  s.comm->close();
}

// Everything in turn, until somebody is killed from outside.
void busy(Session& s) {
  std::printf("ready\n");
  std::fflush(stdout);
  for (;;) {
    all_reduced(s);
    const int next = (s.rank() + 1) % s.size(), before = (s.rank() + s.size() - 1) % s.size();
    const auto out = items(s.rank(), some);
    std::vector<int> in(some);
    s.p2p->sendrecv(out.data(), 4 * some, next, tag, in.data(), 4 * some, before, tag);
    require_items(in.data(), before, some);
    barrier(*s.comm);
  }
}

void nothing(Session&) {}

const std::map<std::string, void (*)(Session&)> scenarios = {{"init", nothing},
                                                             {"inlined", inlined},
                                                             {"eager", eager},
                                                             {"streamed", streamed},
                                                             {"helped", helped},
                                                             {"pulled", pulled},
                                                             {"view", viewed},
                                                             {"eager view", viewed_eager},
                                                             {"withdrawn", withdrawn},
                                                             {"detached", detached},
                                                             {"kept", kept},
                                                             {"barrier", barriers},
                                                             {"disagreement", disagreeing},
                                                             {"all_gather", all_gathered},
                                                             {"all_gather lent", all_gathered_lent},
                                                             {"all_gather_v", all_gathered_v},
                                                             {"all_to_all", all_to_alled},
                                                             {"all_to_all_v", all_to_alled_v},
                                                             {"broadcast", broadcasted},
                                                             {"all_reduce", all_reduced},
                                                             {"reduce_scatter", reduce_scattered},
                                                             {"reduce_scatter_v", reduce_scattered_v},
                                                             {"split", split_all},
                                                             {"moe", moe},
                                                             {"moe apart", moe_apart},
                                                             {"shrink", shrinking},
                                                             {"close", closing},
                                                             {"busy", busy}};

// --- A rank ------------------------------------------------------------------------------------------

std::string list(const std::vector<int>& ranks) {
  std::string out;
  for (const int rank : ranks) out += (out.empty() ? "" : ",") + std::to_string(rank);
  return out.empty() ? "-" : out;
}

void say(const Error& error) {
  std::printf("error %s %s %s %llu %s\n", error.op.empty() ? "-" : error.op.c_str(),
              status_name(error.status), list(error.ranks).c_str(), static_cast<unsigned long long>(now_ns()),
              error.what());
  std::fflush(stdout);
}

// A collective, and messages of each path, on what is left.
void require_works(const std::shared_ptr<Communicator>& comm) {
  const int size = comm->size(), rank = comm->rank(), mine = comm->world().rank();
  std::vector<int> members(static_cast<size_t>(size));
  all_gather(*comm, &mine, members.data(), sizeof mine);
  int64_t sum = mine, expected = 0;
  for (const int member : members) expected += member;
  all_reduce(*comm, &sum, &sum, 1, ElementType::int64, ReduceOp::sum);
  REQUIRE(sum == expected);
  PointToPoint p2p(comm);
  const int next = (rank + 1) % size, before = (rank + size - 1) % size;
  for (const size_t count : {little, some, much}) {
    const auto out = items(mine, count);
    std::vector<int> in(count, -1);
    p2p.sendrecv(out.data(), 4 * count, next, tag, in.data(), 4 * count, before, tag);
    require_items(in.data(), members[static_cast<size_t>(before)], count);
  }
  p2p.close();
  comm->close();
  std::printf("members %s\n", list(members).c_str());
}

// Whether the scenario, and the barrier after it, have gone through.
bool goes_through(Session& s, const std::string& scenario) {
  try {
    scenarios.at(scenario)(s);
    if (!s.comm->closed()) barrier(*s.current);
    return true;
  } catch (const Error& error) {
    say(error);
    // As `with comm:` does for an exception that leaves it.
    if (has_failed()) s.comm->abort(error.what());
    return false;
  }
}

void run(const std::string& scenario, const JobSpec& spec) {
  Session s;
  // So that the others have come to the meeting, too: who comes when it is over finds nobody.
  if (scenario == "init" && crashes_here() && job_rank != 0) nap(0.1);
  try {
    s.comm = Communicator::init(spec, Config::from_environment(), PointToPoint::annex_bytes);
  } catch (const Error& error) {
    return say(error);
  }
  s.current = s.comm;
  s.p2p = std::make_unique<PointToPoint>(s.comm);
  const bool well = goes_through(s, scenario);
  steps_to_go = 0;
  // A rank that has closed or failed is none of the survivors.
  if (!s.comm->closed() && !(crashes_here() && !well && crash.action == "error"))
    require_works(well && s.current != s.comm ? s.current : shrink(s.current));
  s.p2p->close();
  s.comm->close();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5 || !scenarios.count(argv[1])) {
    std::fprintf(stderr, "usage: crash_rank SCENARIO JOB RANK SIZE\n");
    return 2;
  }
  job_rank = std::atoi(argv[3]);
  crash = Crash::from_environment();
  steps_to_go = crashes_here() ? crash.occurrence : 0;
  test_point_hook = come_to;
  run(argv[1], {argv[2], job_rank, std::atoi(argv[4])});
  std::printf("ended\n");
  return 0;
}
