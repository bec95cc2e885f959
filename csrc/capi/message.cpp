// Messages: send, receive, requests, probe, borrowed messages. Not here: how they travel (p2p/).
#include "capi/handles.hpp"

using namespace xccl;
using namespace xccl::capi;

namespace {

void tell(const MessageInfo& info, xccl_message* message_out) {
  if (message_out) *message_out = message(info);
}

}  // namespace

xccl_status xccl_comm_send(xccl_comm* comm, const void* data, uint64_t bytes, int destination, int tag,
                           double timeout) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require_memory(data, bytes, "data");
    state.p2p->send(data, bytes, destination, tag, seconds(timeout));
  });
}

xccl_status xccl_comm_recv(xccl_comm* comm, int source, int tag, double timeout, void* data_out,
                           uint64_t capacity, xccl_message* message_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require_memory(data_out, capacity, "data_out");
    tell(state.p2p->recv(data_out, capacity, source, tag, seconds(timeout)), message_out);
  });
}

xccl_status xccl_comm_sendrecv(xccl_comm* comm, const void* data, uint64_t bytes, int destination,
                               int send_tag, int source, int recv_tag, double timeout, void* data_out,
                               uint64_t capacity, xccl_message* message_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require_memory(data, bytes, "data");
    require_memory(data_out, capacity, "data_out");
    tell(state.p2p->sendrecv(data, bytes, destination, send_tag, data_out, capacity, source, recv_tag,
                             seconds(timeout)),
         message_out);
  });
}

xccl_status xccl_comm_isend(xccl_comm* comm, const void* data, uint64_t bytes, int destination, int tag,
                            xccl_request** request_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require_memory(data, bytes, "data");
    require(request_out, "request_out");
    auto handle = std::make_unique<xccl_request>(comm->state, nullptr);
    handle->request = state.p2p->isend(data, bytes, destination, tag);
    *request_out = handle.release();
  });
}

xccl_status xccl_comm_irecv(xccl_comm* comm, int source, int tag, void* data_out, uint64_t capacity,
                            xccl_request** request_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require_memory(data_out, capacity, "data_out");
    require(request_out, "request_out");
    auto handle = std::make_unique<xccl_request>(comm->state, nullptr);
    handle->request = state.p2p->irecv(data_out, capacity, source, tag);
    *request_out = handle.release();
  });
}

xccl_status xccl_request_wait(xccl_request* request, double timeout, xccl_message* message_out) {
  return guarded(__func__, [&] {
    require(request, "request");
    tell(request->state->p2p->wait(*request->request, seconds(timeout)), message_out);
  });
}

xccl_status xccl_request_test(xccl_request* request, xccl_message* message_out) {
  return guarded(__func__, [&] {
    require(request, "request");
    if (!request->state->p2p->test(*request->request)) return XCCL_PENDING;
    tell(request->request->info, message_out);
    return XCCL_OK;
  });
}

xccl_status xccl_request_cancel(xccl_request* request, int* cancelled_out) {
  return guarded(__func__, [&] {
    require(request, "request");
    require(cancelled_out, "cancelled_out");
    *cancelled_out = request->state->p2p->cancel(*request->request);
  });
}

void xccl_request_destroy(xccl_request* request) { delete request; }

xccl_status xccl_comm_probe(xccl_comm* comm, int source, int tag, double timeout, xccl_message* message_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require(message_out, "message_out");
    tell(state.p2p->probe(source, tag, seconds(timeout)), message_out);
  });
}

xccl_status xccl_comm_iprobe(xccl_comm* comm, int source, int tag, xccl_message* message_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require(message_out, "message_out");
    const std::optional<MessageInfo> info = state.p2p->iprobe(source, tag);
    if (!info) return XCCL_PENDING;
    tell(*info, message_out);
    return XCCL_OK;
  });
}

xccl_status xccl_view_borrow(xccl_comm* comm, int source, int tag, double timeout, xccl_view** view_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require(view_out, "view_out");
    auto handle = std::make_unique<xccl_view>(comm->state, nullptr);
    handle->view = state.p2p->recv_view(source, tag, seconds(timeout));
    *view_out = handle.release();
  });
}

const void* xccl_view_data(const xccl_view* view) { return view ? view->view->data : nullptr; }

xccl_message xccl_view_message(const xccl_view* view) {
  return message(view ? view->view->info : MessageInfo());
}

void xccl_view_release(xccl_view* view) {
  if (!view) return;
  // release: what this thread has read of the message, it read before the sender may write there again.
  view->view->released.store(true, std::memory_order_release);
  delete view;
}
