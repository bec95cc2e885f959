// Shrink: the survivors of a communicator agree on who they are, and make a new one of themselves (MPI's fault-tolerance
// proposal, ULFM: MPI_Comm_shrink). Why they always agree: docs/reliability.md.
// Called by the bindings; a Communicator owns a Shrinking. Not here: who is known to have died (world.hpp).
#pragma once

#include <memory>
#include <vector>

#include "group/communicator.hpp"

namespace xccl {

// Collective on the members of `comm` that take part: all but those that have died, closed it or aborted it. Also where it
// has ended; where it has not, it stays usable. The new communicator has the survivors in their old order; one that dies
// later in this call may be among them, and is then lost to the new one. Its lines are freed like those of split.
// Errors: Timeout, naming those that have not come, leaves everything as it is: call again, the others go on waiting or
// call again too. Closed: this rank has closed or aborted it. OutOfMemory, likewise to be called again.
std::shared_ptr<Communicator> shrink(const std::shared_ptr<Communicator>& comm, double timeout = -1);

// How far one rank has come in shrinking its communicator. A call that fails leaves it where it is, the next goes on.
class Shrinking {
 public:
  explicit Shrinking(Communicator& comm) : comm_(comm) {}

  std::shared_ptr<Communicator> run(const std::shared_ptr<Communicator>& comm, Operation& op);
  // The communicator closes. What this rank has made meanwhile ends with it.
  Communicator::Remains abandon();

 private:
  bool has_arrived(int member);
  bool has_decided(int member);
  bool has_joined(int member);

  void await_decision(Operation& op);
  std::vector<int> late_to_meet();
  int decider();
  bool decide();
  std::vector<int> survivors_by(int decider);

  void join();
  bool await_cards(Operation& op);
  std::shared_ptr<Communicator> connect(const std::shared_ptr<Communicator>& comm);
  bool others_are_gone();

  // Waits until ready(), at most until the deadline: then the members that late() gives are named, unless there are none
  // any more.
  template <class Ready, class Late>
  void await(Operation& op, Ready ready, Late late);

  Communicator& comm_;
  uint64_t attempt_ = 1;                // the one under way, or to come next
  std::vector<int> survivors_;          // members of comm_, in this attempt
  std::shared_ptr<Communicator> made_;  // this rank's part of the new communicator, in this attempt
};

}  // namespace xccl
