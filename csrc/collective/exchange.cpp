#include "collective/exchange.hpp"

#include "collective/arguments.hpp"

namespace xccl {

using namespace exchange_record;

namespace {
// A copy less is worth a round more from here on.
constexpr uint64_t worth_lending = 256 * 1024;
}  // namespace

uint64_t Exchange::begin(uint64_t bytes) {
  op_.phase("publishing");
  const uint64_t list = agreed_ ? round_up(agreed_bytes(), cache_line) : 0;
  const uint64_t at = comm_.scratch().take(bytes + list);
  seq_ = ++comm_.collective_seq();
  op_.publish();
  XCCL_TEST_POINT("exchange.staging");
  if (list) std::memcpy(comm_.scratch().at(at), agreed_, agreed_bytes());
  agreed_at_ = at;
  return at + list;
}

void Exchange::post(int member, const Given& given, uint64_t rounds, uint64_t at) {
  Payload record{call_, size_, given.rows, rounds, at, agreed_at_};
  if (lent_ && given.data) {
    record[where] = lent | (lent_->place.offset + static_cast<uint64_t>(given.data - lent_->data));
    std::copy_n(lent_->place.key.words, 2, &record[key]);
  }
  if (fits_record(given.bytes) && given.bytes) std::memcpy(&record[bytes], given.data, given.bytes);
  XCCL_TEST_POINT("exchange.posting");
  comm_.board().post(member, seq_, record);
}

void Exchange::published() {
  XCCL_TEST_POINT("exchange.published");
  op_.phase("waiting");
}

void Exchange::publish_alike(const Given& given, uint64_t rounds) {
  const uint64_t at = begin(comm_.size() > 1 ? staged(given.bytes) : 0);
  if (comm_.size() > 1) stage(given, at);
  for (int step = 1; step < comm_.size(); ++step)
    post((comm_.rank() + step) % comm_.size(), given, rounds, at);
  published();
}

void Exchange::wait(int member) {
  comm_.await(op_, member, [&] { return arrived(member); }, [this](int other) { return arrived(other); });
}

uint64_t Exchange::plausible(int member, Word word, uint64_t least) const {
  const uint64_t value = posted(member)[word];
  if (value < least || value > beyond_memory)
    fail(Status::Failure, "rank ", comm_.job_rank(member), " announces ", value,
         word == Word::rows ? " rows" : " rounds", ": its record is damaged");
  return value;
}

Exchange::Place Exchange::checked_place(int member, uint64_t length) {
  const Payload record = posted(member);
  const RemoteRegion* region = &comm_.peer_scratch(member);
  if (record[where] & lent) {
    loans_.resize(static_cast<size_t>(comm_.size()));
    auto& loan = loans_[static_cast<size_t>(member)];
    if (!loan)
      loan = comm_.world().provider().attach(comm_.job_rank(member), {{record[key], record[key + 1]}});
    region = &*loan;
  }
  const uint64_t at = record[where] & ~lent;
  if (at > region->bytes || length > region->bytes - at)
    fail(Status::Failure, "rank ", comm_.job_rank(member),
         " names memory outside its region: its record is damaged");
  return {region, at};
}

void Exchange::lend(const std::byte* data, uint64_t bytes) {
  lending_ = bytes >= worth_lending && comm_.size() > 1;
  if (!lending_) return;
  if (const auto place = comm_.world().heap().find(data, bytes)) lent_ = Lent{data, *place};
}

bool Exchange::lends(int member) {
  if (!lending_) return false;
  if (member == comm_.rank()) return lent_.has_value();
  await(member);
  return posted(member)[where] & lent;
}

bool Exchange::all_lend() {
  for (int step = 0; step < comm_.size();
       ++step)  // this rank first, which need not wait for others if it does not
    if (!lends((comm_.rank() + step) % comm_.size())) return false;
  return true;
}

void Exchange::conclude() {
  if (!lending_) return;
  XCCL_TEST_POINT("exchange.concluding");
  lent_.reset();
  publish_alike({nullptr, 0});
  await_all();
  finish();
}

void Exchange::finish() {
  quiet();
  XCCL_TEST_POINT("exchange.pulled");
  comm_.require_trust();
  comm_.board().finish(seq_);
  XCCL_TEST_POINT("exchange.finished");
}

const char* name_of(Collective collective) {
  switch (collective) {
    case Collective::all_gather:
      return "all_gather";
    case Collective::all_gather_v:
      return "all_gather_v";
    case Collective::all_to_all:
      return "all_to_all";
    case Collective::all_to_all_v:
      return "all_to_all_v";
    case Collective::broadcast:
      return "broadcast";
    case Collective::reduce_scatter:
      return "reduce_scatter";
    case Collective::reduce_scatter_v:
      return "reduce_scatter_v";
    case Collective::all_reduce:
      return "all_reduce";
    case Collective::expert_parallel:
      return "ExpertParallel";
    case Collective::split:
      return "split";
  }
  return "something unknown";
}

namespace {

// What Exchange calls `size`, after a number.
const char* size_name(Collective collective) {
  switch (collective) {
    case Collective::all_gather:
    case Collective::broadcast:
    case Collective::expert_parallel:
    case Collective::split:
      return " bytes";
    case Collective::all_to_all:
      return " bytes for each rank";
    case Collective::all_gather_v:
    case Collective::all_to_all_v:
      return " bytes per row";
    case Collective::reduce_scatter:
      return " elements for each rank";
    case Collective::reduce_scatter_v:
    case Collective::all_reduce:
      return " elements";
  }
  return " size";
}

}  // namespace

std::string Exchange::difference(int member) {
  const Payload theirs = posted(member);
  const auto differs = [&](const char* what, const auto& mine, const auto& other) {
    return text(what, ": rank ", own_rank(), " has ", mine, ", rank ", comm_.job_rank(member), " has ",
                other);
  };
  const ExchangeCall a = ExchangeCall::unpacked(call_), b = ExchangeCall::unpacked(theirs[call]);
  if (a.collective != b.collective)
    return text("rank ", own_rank(), " calls ", name_of(a.collective), ", rank ", comm_.job_rank(member),
                " calls ", name_of(b.collective), "; all ranks must make the same calls in the same order");
  if (a.type != b.type) return differs("dtype", element_type_name(a.type), element_type_name(b.type));
  if (a.op != b.op) return differs("op", reduce_op_name(a.op), reduce_op_name(b.op));
  if (a.root != b.root) return differs("root", a.root, b.root);
  if (agreed_) return agreed_difference(member);
  const char* unit = size_name(a.collective);
  return text("rank ", own_rank(), " gives ", size_, unit, ", rank ", comm_.job_rank(member), " gives ",
              theirs[size], unit);
}

// Only their hash is in the record. Who disagrees uses its scratch memory no more, so the list is still there.
std::string Exchange::agreed_difference(int member) {
  std::vector<uint64_t> theirs(static_cast<size_t>(comm_.size()) + 1);
  const uint64_t at = posted(member)[agreed];
  if (at > scratch_bytes - agreed_bytes())
    fail(Status::Failure, "rank ", comm_.job_rank(member), "'s record is damaged");
  const Transfer transfer{theirs.data(), at, agreed_bytes()};
  comm_.world().provider().get(comm_.peer_scratch(member), &transfer, 1);
  quiet();
  size_t i = 0;
  while (i + 1 < theirs.size() && theirs[i] == agreed_[i]) ++i;
  return text(i ? text("counts[", i - 1, "]") : std::string("elements of a row"), ": rank ", own_rank(),
              " has ", agreed_[i], ", rank ", comm_.job_rank(member), " has ", theirs[i]);
}

void Exchange::raise_mismatch() {
  XCCL_TEST_POINT("exchange.mismatch");
  // Every rank has published its record before it can have found a difference.
  for (int member = 0; member < comm_.size(); ++member)
    if (member != comm_.rank() && !arrived(member)) wait(member);
  std::vector<int> differ;
  for (int member = 0; member < comm_.size(); ++member) {
    if (member == comm_.rank()) continue;
    const Payload& record = posted(member);
    if (record[call] != call_ || record[size] != size_) differ.push_back(member);
  }
  if (differ.empty())
    fail(Status::Failure, "a rank has changed its record after it had published it: the record is damaged");
  std::string message = difference(differ[0]);
  if (differ.size() > 1) message += text(" (", rank_list(comm_.job_ranks(differ)), " differ from this rank)");
  throw Error(Status::Mismatch, message, comm_.job_ranks(differ));
}

}  // namespace xccl
