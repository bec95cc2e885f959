/* XCCL for C and everything that can call C: messages, collectives, and dispatch and combine for
 * mixture-of-experts models, between the processes ("ranks") of one host, over shared memory. This header is
 * the manual.
 *
 * Not here: how it works inside (docs/architecture.md), how to compile and link against it (docs/c-library.md).
 *
 *
 * OVERVIEW
 *
 * A job is some processes that a launcher started together (`xccl run`, torchrun, mpirun, srun), or that agree
 * on a name. Each has a rank, 0 to size - 1. A rank joins with xccl_comm_create() and gets a communicator:
 *
 *     xccl_comm *comm;
 *     if (xccl_comm_create(NULL, &comm) != XCCL_OK) {
 *       fprintf(stderr, "%s\n", xccl_error_message());
 *       return 1;
 *     }
 *     xccl_comm_barrier(comm, XCCL_DEFAULT_TIMEOUT);
 *     xccl_comm_destroy(comm);
 *
 * On a communicator there are messages (send, recv), collectives (barrier, all_reduce, ...), sub-groups
 * (split), memory that the other ranks reach without a copy (xccl_memory_alloc), and expert parallelism
 * (xccl_ep): dispatch takes every token to the ranks that host its experts, combine brings the experts' results
 * back and sums them.
 *
 *
 * WHAT HOLDS FOR EVERY FUNCTION
 *
 * Status.     A function that can fail returns an xccl_status; XCCL_OK is 0. What else happened is then told,
 *             to the calling thread, by xccl_error_message() and its siblings. Functions that return something
 *             else cannot fail on valid handles.
 * Outputs     come last, end in _out, and are set only when the function returns XCCL_OK. Memory that results are
 *             written into may hold anything after an error. An output that may be NULL says so.
 * Handles     are opaque. They come from a function named create, isend, irecv, borrow or dispatch, and go back
 *             by the one that its description names. Giving back NULL does nothing. Using a handle that has been
 *             given back, or giving one back while another thread is inside a call on it, is an error that the
 *             library cannot see, as with free(). Passing NULL for a handle, or for an argument that may not be
 *             NULL, is XCCL_INVALID_ARGUMENT.
 * Order.      Handles may be given back in any order: what a handle needs of another stays alive inside.
 * Time        is in seconds. Every wait is bounded: `timeout` is XCCL_DEFAULT_TIMEOUT or any negative number
 *             for the communicator's default, else positive and finite. Anything else is XCCL_INVALID_ARGUMENT.
 * Sizes       are in bytes, counts in elements or rows, as the argument's name says. 0 is a size like any
 *             other; a pointer to nothing may be NULL.
 * Layout.     Matrices are row-major and without gaps: "(tokens, hidden)" is tokens * hidden elements. Pointers
 *             are aligned for their element; misaligned ones are XCCL_INVALID_ARGUMENT.
 * Ranks       in arguments and results are members of that communicator. Ranks in errors are ranks of the whole
 *             job.
 * Memory      passed in stays the caller's. Unless said otherwise it is needed until the function returns.
 *
 *
 * CAVEATS
 *
 * Threads.    One thread at a time may be inside a call on a communicator, and on the objects made from it
 *             (requests, views, xccl_ep, results); a second one gets XCCL_INVALID_ARGUMENT and disturbs
 *             nothing. Different communicators, sub-groups among them, may be used by different threads at the
 *             same time. Releasing a view, freeing memory and destroying a result may be done in any thread.
 *             While a communicator or an xccl_ep is destroyed, no thread may be inside a call on it or on an
 *             object made from it. The error text is per thread.
 * Fork.       In a child of fork() calls on the parent's handles that need other ranks, or take memory, return
 *             XCCL_CLOSED; closing, aborting, freeing and destroying return as ever, and do nothing to the parent
 *             or its memory. The child may join a job of its own. The parent is not disturbed.
 * Death       of a rank is noticed: a call that needs it returns XCCL_PEER_LOST and names it, within 2 seconds
 *             if the call waits, else the next call does. A process that ends without xccl_comm_close() or
 *             xccl_comm_destroy() has died, even by return from main. Nothing stays behind in the file system
 *             in any case.
 * Order       of calls. Ranks make the same collective calls on an object, in the same order. One that calls
 *             something else is XCCL_MISMATCH or XCCL_TIMEOUT, on all of them.
 * Ended.      After an error that others could see (a timed-out collective, a death, a mismatch, no memory for the
 *             rows that a dispatch receives) the communicator is ended: every later call returns the first cause
 *             again, but xccl_comm_shrink(), by which the ranks that are left go on. Close it. XCCL_INVALID_ARGUMENT, and XCCL_TIMEOUT of a message, end nothing: correct the
 *             argument, or call again; after xccl_comm_sendrecv() see there what is left to do.
 * Signals.    The library installs no handler and blocks no signal: the program keeps its own. A handler that
 *             returns does not end a wait; the wait goes on to its deadline. To stop on Ctrl-C, leave SIGINT as
 *             it is (the process dies, the others get XCCL_PEER_LOST), or let a handler set a flag and wait
 *             with short timeouts. No function of this header may be called in a handler. SIGBUS and SIGPIPE
 *             are not raised by the library.
 * Trust.      All ranks run as one user; others are turned away. Ranks exchange data, never code.
 *
 *
 * VERSIONS AND THE BINARY INTERFACE
 *
 * The library's soname carries its major version (before 1.0: major and minor), and only names that begin with
 * xccl_ are exported. Under one soname, a program that was linked with an older library runs with a newer one:
 * functions keep their meaning, codes their number, and structs their fields. A struct whose first field is
 * `size` may get further fields at its end; its _init function fills in their defaults, and `size` tells the
 * library which version of it the program knows. The other structs never change. Later versions may return
 * codes that this header does not list: treat a positive one as XCCL_FAILURE.
 */
#ifndef XCCL_H
#define XCCL_H

#include <stddef.h>
#include <stdint.h>

/* XCCL_VERSION_MAJOR, _MINOR, _PATCH and XCCL_VERSION, the text: of this header. xccl_version() is the
 * library's. */
#include "xccl_version.h"

/* Nonzero if this header is of that version or a later one. For #if. */
#define XCCL_HEADER_AT_LEAST(major, minor, patch) \
  (XCCL_VERSION_MAJOR > (major) ||                \
   (XCCL_VERSION_MAJOR == (major) &&              \
    (XCCL_VERSION_MINOR > (minor) || (XCCL_VERSION_MINOR == (minor) && XCCL_VERSION_PATCH >= (patch)))))

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* Between the next line and its twin below there is no preprocessor: Python's cffi, and whatever else reads C
 * declarations, takes it as it stands.
 * [declarations begin] */

/* -------------------------------------------------------------------------------------------------- Codes */

/* What a call came to. Errors are positive. */
typedef enum xccl_status {
  /* The answer of calls that do not wait: it has not happened yet. Not an error; the thread's error text is not
   * touched. Ask again, or use the call that waits: xccl_request_wait(), xccl_comm_probe(). */
  XCCL_PENDING = -1,

  XCCL_OK = 0,

  /* The operating system, or the library itself, failed. The message says how; repeating seldom helps. */
  XCCL_FAILURE = 1,

  /* An argument, or an environment variable, is wrong; the message names it and what was expected. Nothing was
   * sent and nothing changed: correct it and call again. */
  XCCL_INVALID_ARGUMENT = 2,

  /* Ranks called the same operation with arguments that disagree; xccl_error_ranks() are those that differ from
   * this one. A mistake in the program. */
  XCCL_MISMATCH = 3,

  /* The deadline passed. xccl_error_ranks() are alive but late, and the message tells what each is doing. A
   * message (send, recv, probe, a request) may be waited for again, as if nothing had been, but for what
   * xccl_comm_sendrecv() says; a collective has ended the communicator. */
  XCCL_TIMEOUT = 4,

  /* xccl_error_ranks() died. Go on without them, xccl_comm_shrink(), or close the communicator. */
  XCCL_PEER_LOST = 5,

  /* xccl_error_ranks() failed and said so: xccl_comm_abort(), a Python exception, an error in a call that
   * others were part of. The message holds its text. Shrink the communicator, or close it. */
  XCCL_PEER_FAILED = 6,

  /* What should be received is larger than the memory for it; the error text names both sizes. A message is
   * still there: receive it into more memory. */
  XCCL_TRUNCATED = 7,

  /* Memory cannot be had, and the message names the limit that forbids it; or as many results of dispatch are
   * alive as the xccl_ep was made for. Nothing was overcommitted: free something and call again. Only if there is no
   * memory for the rows that a dispatch receives, which is known when the others are in the call as well, has the
   * communicator ended. */
  XCCL_OUT_OF_MEMORY = 8,

  /* The object, or a rank that is needed (xccl_error_ranks()), has been closed. Nothing will come of waiting. */
  XCCL_CLOSED = 9
} xccl_status;

/* Types of elements. Which of them a function takes, it says. */
typedef enum xccl_dtype {
  XCCL_FLOAT32 = 1,
  XCCL_FLOAT16 = 2,
  XCCL_BFLOAT16 = 3,
  XCCL_INT64 = 4,
  XCCL_INT32 = 5
} xccl_dtype;

/* How a reduction combines elements. */
typedef enum xccl_reduce_op { XCCL_SUM = 1, XCCL_MAX = 2 } xccl_reduce_op;

/* Receive from any rank; with any tag (tags that are sent are 0 or more). */
enum { XCCL_ANY_SOURCE = -1, XCCL_ANY_TAG = -1 };

/* As `timeout`: the default of the communicator, xccl_comm_timeout(). */
enum { XCCL_DEFAULT_TIMEOUT = -1 };

/* ------------------------------------------------------------------------------------------------ Version */

/* The library's version, such as "0.1.0". Static. */
const char* xccl_version(void);

/* Nonzero if the library is of that version or a later one. */
int xccl_version_at_least(int major, int minor, int patch);

/* ------------------------------------------------------------------------------------------------- Errors */

/* A code as it is written here, such as "XCCL_TIMEOUT", and what it means in a few words. Static; for a number
 * that is no code: "unknown". */
const char* xccl_status_name(xccl_status status);
const char* xccl_status_text(xccl_status status);

/* The last error of the calling thread. Calls that succeed do not touch it, so look only after a call has
 * failed. All pointers are valid until the next call on this thread that fails, or until the thread ends.
 *
 * _status     its code; XCCL_OK if this thread has had no error yet.
 * _message    all of it in words, with the trail: "xccl_ep_combine: combine #4, waiting:
 *             no answer from rank 3 within 30 s (...)".
 * _operation  during which operation, such as "combine"; "" outside of one.
 * _sequence   which call of that operation it was on its object, from 1; 0 outside of one.
 * _phase      where in the operation, such as "waiting"; "" if not known.
 * _ranks      the ranks at fault: dead, late, failed or disagreeing; numbered as in the whole job. `count_out`
 *             gets how many, and may be 0. */
xccl_status xccl_error_status(void);
const char* xccl_error_message(void);
const char* xccl_error_operation(void);
uint64_t xccl_error_sequence(void);
const char* xccl_error_phase(void);
const int* xccl_error_ranks(size_t* count_out);

/* ------------------------------------------------------------------------------ Joining and leaving a job */

/* A communicator: a group of ranks that reach each other's memory. */
typedef struct xccl_comm xccl_comm;

/* How to join. Make one with xccl_comm_config_init(), then change what you need.
 * size              of this struct, as the program knows it; set by xccl_comm_config_init().
 * rank, rank_count  this process, and how many there are. Both, or leave both at -1, for what the launcher said.
 * job               a name that all ranks of the job, and no other job on this host, use. Needed with rank_count > 1;
 *                   NULL: the launcher's.
 * provider          "posix_shm": processes of one host; "local": threads of one process; NULL: as the environment
 *                   variable XCCL_PROVIDER says, else "posix_shm".
 * timeout           default deadline of every call; 0: XCCL_TIMEOUT, else 30 s.
 * startup_timeout   deadline for all ranks to arrive; 0: XCCL_STARTUP_TIMEOUT, else 120 s.
 * progress_thread   1: a thread of this rank goes on with what has been started (isend, irecv, dispatch and combine in two
 *                   halves) while the program computes, for hosts with cores to spare; 0: none; -1: as
 *                   XCCL_PROGRESS_THREAD says, else none. Each rank for itself. */
typedef struct xccl_comm_config {
  size_t size;
  int rank;
  int rank_count;
  const char* job;
  const char* provider;
  double timeout;
  double startup_timeout;
  int64_t progress_thread;
} xccl_comm_config;

/* Fills in the defaults. `size` is sizeof(xccl_comm_config). */
void xccl_comm_config_init(xccl_comm_config* config, size_t size);

/* Joins a job and returns once all of its ranks have arrived. `config` may be NULL: everything from the
 * launcher and the environment. A program that no launcher started is a job of one rank. A program may join
 * several times, one after the other or at once, if all ranks do so in the same order.
 *
 * Launchers: `xccl run -n 4 ./program`, torchrun --no-python, mpirun (Open MPI, MPICH, Intel MPI), srun; or by
 * hand with XCCL_RANK, XCCL_SIZE and XCCL_JOB. All ranks must be on one host. `xccl doctor` lists the environment
 * variables that are read; one that begins with XCCL_ and is none of them is not noticed.
 *
 * Errors: XCCL_INVALID_ARGUMENT (also: the name of the job is taken; the launcher's variables contradict each
 * other), XCCL_TIMEOUT (ranks that did not arrive), XCCL_PEER_LOST, XCCL_MISMATCH (about the number of ranks),
 * XCCL_OUT_OF_MEMORY, XCCL_FAILURE. Give the communicator back with xccl_comm_destroy(). */
xccl_status xccl_comm_create(const xccl_comm_config* config, xccl_comm** comm_out);

/* Splits a communicator, as MPI_Comm_split does: ranks that give the same `color`, 0 or more, get a communicator of
 * their own, in the order of `key`, and of their rank here where keys are equal. Color -1: none, and *sub_out becomes
 * NULL. Collective over `comm`. The new one is independent: it has calls, messages and errors of its own, may be used
 * by another thread at the same time, and may outlive `comm`. Give it back like any other.
 *
 * Errors: those of a collective: XCCL_TIMEOUT, XCCL_PEER_LOST, XCCL_PEER_FAILED, XCCL_CLOSED, XCCL_MISMATCH,
 * XCCL_INVALID_ARGUMENT, XCCL_OUT_OF_MEMORY. */
xccl_status xccl_comm_split(xccl_comm* comm, int color, int key, double timeout, xccl_comm** sub_out);

/* Makes a communicator of the ranks that are left, after some have died or failed, as MPI's fault-tolerance proposal
 * (ULFM) does. Collective over those that take part in `comm`: all but the ranks that have died, have closed it, or have
 * aborted it. A rank in which a call has failed, by XCCL_TIMEOUT say, still takes part. They keep their order. All get
 * the same ranks, whenever each has learnt of a death, and if others die meanwhile; one that dies late in this call may
 * be in the new communicator, whose next call then returns XCCL_PEER_LOST: shrink that one, or `comm` again. Memory that
 * was allocated with `comm` is used in the new one like its own; let go of it, and of `comm`, when you like. `comm`
 * stays ended; if it was not, it stays usable and the new one is a duplicate. Give it back like any other.
 *
 * Errors: XCCL_TIMEOUT, naming the ranks that have not come: nothing has changed, call again, and the others may too.
 * XCCL_OUT_OF_MEMORY, likewise. XCCL_CLOSED: this rank has closed or aborted `comm`. XCCL_INVALID_ARGUMENT. */
xccl_status xccl_comm_shrink(xccl_comm* comm, double timeout, xccl_comm** survivors_out);

/* This rank; how many there are; the name of the memory in use, such as "posix_shm"; the name of the job; the
 * default deadline of calls, in seconds; the shared memory that this rank takes now, in bytes; nonzero once it
 * is closed. Texts are valid as long as the communicator. For NULL: -1, NULL or 0. */
int xccl_comm_rank(const xccl_comm* comm);
int xccl_comm_size(const xccl_comm* comm);
const char* xccl_comm_provider(const xccl_comm* comm);
const char* xccl_comm_job(const xccl_comm* comm);
double xccl_comm_timeout(const xccl_comm* comm);
uint64_t xccl_comm_committed_bytes(const xccl_comm* comm);
int xccl_comm_is_closed(const xccl_comm* comm);

/* How one rank has waited for another: how often, and for how many seconds, in all and at most. */
typedef struct xccl_wait {
  uint64_t count;
  double total;
  double longest;
} xccl_wait;

/* Who waited for whom. `waits` gets size * size entries, row by row: entry [i * size + j] tells how rank i of `comm` has
 * waited for its rank j, since the job began or rank i reset it, in calls on any communicator of the job. The sum over a
 * row is how long that rank has waited; over a column without the diagonal, how long others have waited for that rank.
 * Entry [i * size + i] is for waits for no rank in particular: receives from XCCL_ANY_SOURCE. A wait is charged to the
 * rank that is late, which in a barrier need not be the one that rank i hears from. Only waits that outlast their spin
 * count (`xccl doctor` tells how long that is), each when it ends.
 *
 * Reads the other ranks' memory, without their help: it does not wait, also works once a rank has died or the
 * communicator has ended, and may be called in any thread. Reset begins this rank's own row anew, so call it on all
 * ranks. Errors: XCCL_INVALID_ARGUMENT. */
xccl_status xccl_comm_wait_stats(xccl_comm* comm, xccl_wait* waits);
xccl_status xccl_comm_reset_wait_stats(xccl_comm* comm);

/* Gives up: the other ranks' calls on `comm`, those under way and the next, return XCCL_PEER_FAILED with this text
 * (its first 504 bytes), and every further call here fails; xccl_comm_shrink() leaves this rank out. Use it when
 * this rank meets an error that the others should not have to wait for, in any thread: a call that another one is
 * inside fails, too. Sub-groups are communicators of their own: abort those, too. Where `comm` has ended before, the
 * others know that cause, and this rank only leaves. Then destroy the communicator. Errors: XCCL_INVALID_ARGUMENT. */
xccl_status xccl_comm_abort(xccl_comm* comm, const char* reason);

/* Ends this rank's part in an orderly way, and first that of every xccl_ep made on it. Not collective; a second
 * call does nothing. It waits, each time at most for the default timeout, until what this rank has sent no
 * longer needs its help, and until no other rank reads this rank's memory. Ranks that need this one afterwards
 * get XCCL_CLOSED. Memory and results stay readable; requests that have not finished never will.
 *
 * Errors: XCCL_INVALID_ARGUMENT (another thread is inside a call). It is closed even if something else is
 * returned. */
xccl_status xccl_comm_close(xccl_comm* comm);

/* Closes it if it is not, and frees it, with all the memory that was allocated with it. No thread may be inside a
 * call on it, or on an object made from it. */
void xccl_comm_destroy(xccl_comm* comm);

/* ------------------------------------------------------------------------------------------------- Memory */

/* Memory in the application area: other ranks reach it, so that large messages, and what all_to_all, all_gather
 * and broadcast give from it in 256 KiB and more, are copied once, by the receiver, instead of twice. Any call
 * takes any other memory as well. 64-byte aligned, not cleared; 0 bytes are a valid size. It stays until xccl_memory_free(), or until the communicator that it was allocated with is
 * destroyed; closing that does not take it away. Errors: XCCL_OUT_OF_MEMORY (rather than a process that is
 * killed later), XCCL_CLOSED, XCCL_INVALID_ARGUMENT. */
xccl_status xccl_memory_alloc(xccl_comm* comm, uint64_t bytes, void** memory_out);

/* Frees it; NULL does nothing. A message sent from it must have finished. Errors: XCCL_INVALID_ARGUMENT if it
 * was not allocated with this communicator. */
xccl_status xccl_memory_free(xccl_comm* comm, void* memory);

/* -------------------------------------------------------------------------------------------------- Messages
 *
 * A message goes from one rank to another, with a tag of 0 or more. Messages of one pair and tag arrive in the
 * order in which they were sent. Any size: small ones are buffered and the send returns at once; a large one
 * may have to wait for its receive, as in MPI. Two ranks that send large messages to each other therefore use
 * isend, irecv or sendrecv. A rank may send to itself. Progress is made inside calls.
 *
 * The errors of a call that waits, "the usual" below: XCCL_TIMEOUT, XCCL_PEER_LOST, XCCL_PEER_FAILED,
 * XCCL_CLOSED (the peer closed and will not answer), XCCL_INVALID_ARGUMENT, XCCL_OUT_OF_MEMORY, XCCL_FAILURE. */

/* What a receive tells about its message. */
typedef struct xccl_message {
  int source;
  int tag;
  uint64_t bytes;
} xccl_message;

/* Sends; returns when `data` may be used again, which says nothing about whether it has been received.
 * Errors: the usual. After XCCL_TIMEOUT the message has not been sent; but if xccl_error_phase() is "lent", it has: the
 * receiver has borrowed it, and `data` must stay as it is until it gives it back. To wait for that again, use isend. */
xccl_status xccl_comm_send(xccl_comm* comm, const void* data, uint64_t bytes, int destination, int tag,
                           double timeout);

/* Receives the first message that matches. `source` may be XCCL_ANY_SOURCE, `tag` XCCL_ANY_TAG. `message_out`
 * may be NULL. Errors: the usual; XCCL_TRUNCATED if it is larger than `capacity`. Both leave the message where
 * it is. */
xccl_status xccl_comm_recv(xccl_comm* comm, int source, int tag, double timeout, void* data_out,
                           uint64_t capacity, xccl_message* message_out);

/* Sends and receives at once, so that nobody waits for the other in a ring. `message_out` (of what was
 * received) may be NULL. Errors: those of the two. After XCCL_TIMEOUT xccl_error_operation() tells what has been
 * done: "send": the message has not been sent (or is lent, as of send); "sendrecv": it has, so only receive again.
 * Nothing is ever taken. */
xccl_status xccl_comm_sendrecv(xccl_comm* comm, const void* data, uint64_t bytes, int destination,
                               int send_tag, int source, int recv_tag, double timeout, void* data_out,
                               uint64_t capacity, xccl_message* message_out);

/* A send or a receive under way. */
typedef struct xccl_request xccl_request;

/* As send and recv, without waiting. Until the request has finished, the memory must stay, and be neither
 * written nor, of a receive, read. There may be any number of them. Give the request back with
 * xccl_request_destroy().
 * Errors: XCCL_INVALID_ARGUMENT, XCCL_OUT_OF_MEMORY, XCCL_CLOSED, and what has ended the communicator. */
xccl_status xccl_comm_isend(xccl_comm* comm, const void* data, uint64_t bytes, int destination, int tag,
                            xccl_request** request_out);
xccl_status xccl_comm_irecv(xccl_comm* comm, int source, int tag, void* data_out, uint64_t capacity,
                            xccl_request** request_out);

/* Waits until the request has finished. `message_out` may be NULL; of a send, it tells what was sent. Waiting
 * again for one that has finished returns the same again. Errors: those of send and recv. XCCL_TIMEOUT leaves
 * the request as it is: wait again. */
xccl_status xccl_request_wait(xccl_request* request, double timeout, xccl_message* message_out);

/* The same without waiting: XCCL_PENDING if it has not finished. The errors of deaths and closes come from here, too. */
xccl_status xccl_request_test(xccl_request* request, xccl_message* message_out);

/* Takes the request back while nothing has matched it. Nonzero in *cancelled_out: nothing was sent or received, nor ever
 * will be; the memory is free, and waiting for the request returns XCCL_CLOSED. 0: it is too late, for the message has
 * been matched, or buffered, as small sends are at once; wait for it. Never waits. Errors: those of a death or a failure
 * that it learns of, XCCL_INVALID_ARGUMENT. */
xccl_status xccl_request_cancel(xccl_request* request, int* cancelled_out);

/* Frees the handle, also of a request that has not finished: that one goes on unless it is cancelled before, and its
 * memory must stay until the communicator is closed. */
void xccl_request_destroy(xccl_request* request);

/* Waits for a message that such a receive would get, and tells about it without taking it. Errors: the usual. */
xccl_status xccl_comm_probe(xccl_comm* comm, int source, int tag, double timeout, xccl_message* message_out);

/* The same without waiting: XCCL_PENDING if there is none. Errors: XCCL_PEER_LOST, XCCL_PEER_FAILED; XCCL_CLOSED if there
 * is none and `source`, a rank, has closed; XCCL_INVALID_ARGUMENT. */
xccl_status xccl_comm_iprobe(xccl_comm* comm, int source, int tag, xccl_message* message_out);

/* A message, borrowed where it lies: read without a copy. */
typedef struct xccl_view xccl_view;

/* Receives the first message that matches, by borrowing it. The sender's memory is lent meanwhile: its send may
 * not finish before xccl_view_release(). Errors: the usual. */
xccl_status xccl_view_borrow(xccl_comm* comm, int source, int tag, double timeout, xccl_view** view_out);

/* The bytes, which must not be written to, and what the message is. Valid until the view is released or its
 * communicator closed: then the sender may write there, or free it. For NULL: NULL, and a message of 0 bytes from rank
 * -1. */
const void* xccl_view_data(const xccl_view* view);
xccl_message xccl_view_message(const xccl_view* view);

/* Gives the message back to its sender and frees the handle. In any thread; never waits. */
void xccl_view_release(xccl_view* view);

/* ----------------------------------------------------------------------------------------------- Collectives
 *
 * All ranks of the communicator call the same function with arguments that agree, in the same order. Sizes and
 * counts that must be the same on all ranks, and are not, are XCCL_MISMATCH on all of them, naming who differs.
 * On return every buffer may be used again. Input and output do not overlap unless it is said that they may.
 *
 * Errors of all: XCCL_TIMEOUT, XCCL_PEER_LOST, XCCL_PEER_FAILED, XCCL_CLOSED, XCCL_MISMATCH, which end the
 * communicator ("Ended" above); XCCL_INVALID_ARGUMENT, XCCL_OUT_OF_MEMORY, XCCL_FAILURE.
 *
 * Reductions take XCCL_FLOAT32, XCCL_FLOAT16, XCCL_BFLOAT16 and XCCL_INT64. Elements are combined in the order
 * of ranks, each step in float32, and rounded once to the type; int64 wraps around; the largest of anything
 * with a NaN is NaN. So the bits are the same on every rank and in every run. */

/* Returns when all ranks have called it. */
xccl_status xccl_comm_barrier(xccl_comm* comm, double timeout);

/* Gives every rank the bytes of `root`, which reads `data`; the others write it. */
xccl_status xccl_comm_broadcast(xccl_comm* comm, void* data, uint64_t bytes, int root, double timeout);

/* Gives every rank the bytes of all: all_out has room for size * bytes, in rank order. `mine` may be its own
 * place there. */
xccl_status xccl_comm_all_gather(xccl_comm* comm, const void* mine, uint64_t bytes, double timeout,
                                 void* all_out);

/* The same with a number of rows that differs between ranks, 0 included. A row has row_bytes bytes, on all ranks.
 * rows_out has room for `capacity` rows and gets those of all, in rank order; counts_out (size entries) how many each
 * rank gave. XCCL_TRUNCATED if they do not fit: the other ranks have theirs, this one has counts_out alone, and the
 * communicator stays usable. */
xccl_status xccl_comm_all_gather_v(xccl_comm* comm, const void* rows, uint64_t count, uint64_t row_bytes,
                                   double timeout, void* rows_out, uint64_t capacity, uint64_t* counts_out);

/* Gives every rank something else: piece r of `mine` (bytes_each bytes) becomes piece "this rank" of all_out on
 * rank r. Both have size * bytes_each bytes. */
xccl_status xccl_comm_all_to_all(xccl_comm* comm, const void* mine, uint64_t bytes_each, double timeout,
                                 void* all_out);

/* The same with rows, of which the first send_counts[0] are for rank 0, the next send_counts[1] for rank 1, and
 * so on; 0 is normal. Output as of all_gather_v: counts_out says how many came from each rank. */
xccl_status xccl_comm_all_to_all_v(xccl_comm* comm, const void* rows, const uint64_t* send_counts,
                                   uint64_t row_bytes, double timeout, void* rows_out, uint64_t capacity,
                                   uint64_t* counts_out);

/* Combines `count` elements of every rank, one by one, and gives the result to all. `reduced_out` may be
 * `mine`. */
xccl_status xccl_comm_all_reduce(xccl_comm* comm, const void* mine, uint64_t count, xccl_dtype dtype,
                                 xccl_reduce_op op, double timeout, void* reduced_out);

/* Combines size blocks of count_each elements, and gives block r to rank r. `reduced_out` may be this rank's
 * block of `mine`. */
xccl_status xccl_comm_reduce_scatter(xccl_comm* comm, const void* mine, uint64_t count_each, xccl_dtype dtype,
                                     xccl_reduce_op op, double timeout, void* reduced_out);

/* The same with blocks of counts[r] elements for rank r: the same `counts` (size entries) on all ranks. */
xccl_status xccl_comm_reduce_scatter_v(xccl_comm* comm, const void* mine, const uint64_t* counts,
                                       xccl_dtype dtype, xccl_reduce_op op, double timeout,
                                       void* reduced_out);

/* -------------------------------------------------------------------------- Expert parallelism: made, closed
 *
 * The experts of one or more MoE layers, spread over the ranks of a communicator: an xccl_ep, which error texts call an
 * ExpertParallel, as in Python. Rank r hosts a contiguous
 * block of experts; where they do not divide, the first ranks host one more; or as `placement` says. Then every rank
 * makes the same sequence of dispatch and combine calls; one xccl_ep serves any number of layers of the same shape. Ranks
 * without experts, tokens without experts, ranks without tokens: all normal.
 *
 * Results are bit for bit the same whatever the number of ranks, the order of arrival and the instruction set:
 * in top-k order, acc = round32(w * row) for the first expert, then acc = round32(acc + round32(w * row)),
 * without fused multiply-add, and one rounding to nearest even to the type of rows at the end. Rows that combine has
 * quantised are first round32(scale * code). */

typedef struct xccl_ep xccl_ep;

/* What xccl_result_x() holds: a row for each token and expert, expert by expert, ready for a grouped GEMM; or each
 * token once, and in xccl_result_index() which of them each row is of: a quarter of the bytes and less, for kernels
 * that gather. Results go back expert by expert in both. */
typedef enum xccl_row_layout { XCCL_LAYOUT_EXPERT = 1, XCCL_LAYOUT_TOKEN = 2 } xccl_row_layout;

/* What rows are while they travel: as they are; or a byte an element and float scales beside, about half of the bytes of
 * 16-bit rows. XCCL_QUANT_INT8: whole numbers -127 to 127, one scale for each row. XCCL_QUANT_FP8_E4M3: 8-bit floating
 * point numbers (4 bits of exponent, 3 of fraction, no infinities), one scale for each 128 elements of a row; the last
 * block may be shorter. An element stands for scale * code. docs/quantisation.md has the rounding, what becomes of NaN
 * and infinities, and a bound of the error. */
typedef enum xccl_quant { XCCL_QUANT_NONE = 0, XCCL_QUANT_INT8 = 1, XCCL_QUANT_FP8_E4M3 = 2 } xccl_quant;

/* Its shape: the same on all ranks. Make one with xccl_ep_config_init(), then fill in the first four numbers.
 * size         of this struct, as the program knows it; set by xccl_ep_config_init().
 * num_experts  in total, over all ranks.
 * hidden       elements of a row; any number.
 * max_tokens   the most tokens any rank dispatches in one call. Address space is reserved for the worst case, every
 *              token to one rank; memory is taken for what happens. See xccl_plan.
 * topk         experts per token.
 * results      how many results of dispatch may be alive at once; 2 by default.
 * dtype        of rows: XCCL_FLOAT32, XCCL_FLOAT16 or XCCL_BFLOAT16, which is the default.
 * layout       of what a dispatch brings; XCCL_LAYOUT_EXPERT by default.
 * dispatch_quant  how dispatch moves rows; XCCL_QUANT_NONE by default. Else xccl_result_x() has codes, and
 *              xccl_result_scales() what belongs to them. x is given in `dtype` in any case, and so are results.
 * combine_quant  how combine moves the results, which it quantises first; XCCL_QUANT_NONE by default. In the sum each
 *              row is round32(scale * code).
 * placement    the expert in each slot, rank by rank; -1: none. Every expert is in one slot at least. One in several has
 *              replicas, which take turns: source rank r sends token t to replica (r + t) mod their number, in the order
 *              of slots. NULL: the contiguous blocks. Read by the call that gets this struct, not later.
 * slot_counts  with `placement`: how many slots each rank has, 0 or more; as many numbers as ranks.
 * shared_experts  numbers of experts that get every token besides the ones it names, on the token's own rank if they
 *              have a replica there; NULL: none. They come after the topk in sums.
 * shared_count how many. */
typedef struct xccl_ep_config {
  size_t size;
  int64_t num_experts;
  int64_t hidden;
  int64_t max_tokens;
  int64_t topk;
  int64_t results;
  xccl_dtype dtype;
  xccl_row_layout layout;
  xccl_quant dispatch_quant;
  xccl_quant combine_quant;
  const int32_t* placement;
  const int32_t* slot_counts;
  const int32_t* shared_experts;
  int64_t shared_count;
} xccl_ep_config;

/* Fills in the defaults. `size` is sizeof(xccl_ep_config). */
void xccl_ep_config_init(xccl_ep_config* config, size_t size);

/* Collective. Errors: XCCL_INVALID_ARGUMENT; XCCL_MISMATCH, naming the field in which ranks differ;
 * XCCL_OUT_OF_MEMORY, of memory or address space. These leave the communicator usable; those that follow end it, as in
 * any collective: XCCL_TIMEOUT, XCCL_PEER_LOST, XCCL_PEER_FAILED, XCCL_CLOSED, XCCL_MISMATCH of ranks that are in other
 * calls, XCCL_FAILURE. Give it back with xccl_ep_destroy(). */
xccl_status xccl_ep_create(xccl_comm* comm, const xccl_ep_config* config, double timeout, xccl_ep** ep_out);

/* Global numbers of the experts hosted here, in the order of xccl_result_counts(), which is that of this rank's slots:
 * -1 for an empty one. `count_out` gets how many. Valid until the next xccl_ep_set_placement(), and as long as the
 * xccl_ep. */
const int* xccl_ep_local_experts(const xccl_ep* ep, size_t* count_out);

/* From the next dispatch on, `placement` says which expert each slot holds, in the form of xccl_ep_config; the slots
 * stay as many as they are, and `count` is how many all ranks have. Collective, as a dispatch. It moves no weights.
 * Results of earlier dispatches can still be combined, with the same bits; their routings cannot be used for another
 * dispatch. Errors: XCCL_INVALID_ARGUMENT (nothing was sent); XCCL_MISMATCH: other ranks give another placement, or are
 * in another call; XCCL_TIMEOUT, XCCL_PEER_LOST, XCCL_PEER_FAILED, XCCL_CLOSED. */
xccl_status xccl_ep_set_placement(xccl_ep* ep, const int32_t* placement, size_t count, double timeout);

/* How many tokens this rank has dispatched to each expert since the xccl_ep was made, or since the last call with
 * `reset` nonzero; xccl_ep_dispatch_again() does not count. load_out has room for num_experts numbers. Not collective:
 * the sum over ranks is one xccl_comm_all_reduce(). Errors: XCCL_INVALID_ARGUMENT. */
xccl_status xccl_ep_expert_load(xccl_ep* ep, int reset, int64_t* load_out);

/* Gives this rank's buffers back. Not collective; a second call does nothing. It waits, at most for the
 * communicator's timeout, until no rank still pulls from here. Results stay readable. Errors:
 * XCCL_INVALID_ARGUMENT (another thread is inside a call). */
xccl_status xccl_ep_close(xccl_ep* ep);

/* Closes it if it is not, and frees it. No thread may be inside a call on it, or on a result of it. */
void xccl_ep_destroy(xccl_ep* ep);

/* --------------------------------------------------------------------- Expert parallelism: dispatch, combine
 *
 * Errors of dispatch and combine, "as dispatch" below: XCCL_INVALID_ARGUMENT: nothing was sent;
 * XCCL_OUT_OF_MEMORY: as many results are alive as the xccl_ep was made for, or memory is short; nothing was sent,
 * unless it is the rows received that do not fit: then the communicator is ended; XCCL_MISMATCH: other ranks are in
 * another call; XCCL_TIMEOUT, XCCL_PEER_LOST, XCCL_PEER_FAILED, XCCL_CLOSED, XCCL_FAILURE. */

/* What a dispatch made: rows for this rank's experts, and the routing that brought them. */
typedef struct xccl_result xccl_result;

/* Which row came from where, and the way back. Small. */
typedef struct xccl_routing xccl_routing;

/* Memory for `tokens` rows of the next dispatch, (tokens, hidden), which then copies nothing first, unless it quantises.
 * Optional.
 * Two are used in turn, so it is valid until the next but one call of this function, and until the xccl_ep is
 * closed. It waits, rarely, until all ranks have pulled what was last dispatched from it.
 * Errors: XCCL_INVALID_ARGUMENT if `tokens` exceeds max_tokens; XCCL_OUT_OF_MEMORY, XCCL_TIMEOUT, XCCL_PEER_LOST,
 * XCCL_PEER_FAILED, XCCL_CLOSED. */
xccl_status xccl_ep_input_buffer(xccl_ep* ep, int64_t tokens, double timeout, void** buffer_out);

/* Sends every token to the ranks of its experts. Collective; one synchronisation.
 * x             (tokens, hidden), dtype of the xccl_ep; 0 to max_tokens tokens, any number on each rank. Free
 *               to be overwritten on return, unless it is an input buffer.
 * topk_experts  (tokens, topk) expert numbers of type `expert_dtype`, XCCL_INT32 or XCCL_INT64; -1 for none. An
 *               expert may be named twice.
 * topk_weights  (tokens, topk) float; with shared experts (tokens, topk + shared_count).
 * Errors: as above. Give the result back with xccl_result_destroy(). */
xccl_status xccl_ep_dispatch(xccl_ep* ep, const void* x, int64_t tokens, const void* topk_experts,
                             xccl_dtype expert_dtype, const float* topk_weights, double timeout,
                             xccl_result** result_out);

/* The same for tokens that go the same way again, such as gradients: as many tokens as `routing` was made for.
 * All ranks give the routing of the same dispatch, of this xccl_ep. Errors: as dispatch. */
xccl_status xccl_ep_dispatch_again(xccl_ep* ep, const void* x, int64_t tokens, const xccl_routing* routing,
                                   double timeout, xccl_result** result_out);

/* The rows that came: (rows, hidden), in the order (local expert, source rank, source token); of the type of rows, or if
 * dispatch quantises codes of a byte each, whose scales are in xccl_result_scales(). Writable, so
 * experts may work in place. In XCCL_LAYOUT_TOKEN the tokens that came, each once, in the order (source rank, source
 * token). Valid until the result is released. NULL once it is; where there are no rows it may be NULL too. */
void* xccl_result_x(const xccl_result* result);

/* The scales of xccl_result_x(), if dispatch quantises: one float for each of its rows with XCCL_QUANT_INT8,
 * (rows, ceil(hidden / 128)) with XCCL_QUANT_FP8_E4M3. Else NULL; otherwise as xccl_result_x(). */
float* xccl_result_scales(const xccl_result* result);

/* How many rows: of results in any layout; and of xccl_result_x(), which differs only in XCCL_LAYOUT_TOKEN. */
int64_t xccl_result_row_count(const xccl_result* result);
int64_t xccl_result_x_count(const xccl_result* result);

/* In XCCL_LAYOUT_TOKEN: for each row, where its token lies in xccl_result_x(). Else NULL. Valid until the result is
 * destroyed. */
const int32_t* xccl_result_index(const xccl_result* result);

/* Rows of each local expert, in the order of xccl_ep_local_experts(). Valid until the result is destroyed. */
const int64_t* xccl_result_counts(const xccl_result* result);

/* Memory for the experts' results, (rows, hidden), which combine then does not copy. Optional. It waits,
 * rarely, until all ranks have pulled an earlier combine of this result. Valid until the result is released.
 * Errors: XCCL_INVALID_ARGUMENT if it has been released; XCCL_OUT_OF_MEMORY, XCCL_TIMEOUT, XCCL_PEER_LOST,
 * XCCL_PEER_FAILED, XCCL_CLOSED. */
xccl_status xccl_result_output_buffer(xccl_result* result, double timeout, void** buffer_out);

/* Brings the experts' results back and sums them, weighted, for each token. Collective; one synchronisation.
 * rows     (rows, hidden): the result for each token and expert, expert by expert, dtype of the xccl_ep. The output
 *          buffer and, but in XCCL_LAYOUT_TOKEN or if dispatch quantises, xccl_result_x() itself are not copied, unless
 *          combine quantises; other ranks may read them until the next dispatch, combine or
 *          xccl_result_output_buffer() here returns, so write to them again only after that.
 * weights  float instead of those given to dispatch, of the same shape; may be NULL.
 * y_out    (tokens, hidden), in the order of the tokens given to dispatch; zeros for a token without experts.
 *          Not in the memory of a result.
 * The result stays valid and may be combined again. Errors: as dispatch. */
xccl_status xccl_ep_combine(xccl_ep* ep, const void* rows, xccl_result* result, const float* weights,
                            double timeout, void* y_out);

/* Dispatch and combine in two halves. The first, _start, publishes what other ranks need of this one, and waits for
 * nobody. The second, _finish, waits for what they publish, pulls, and gives what the call in one piece gives, bit for
 * bit. In between, the others can pull from here, and this rank computes or makes other calls: messages, collectives,
 * calls on another xccl_ep. So two xccl_ep take two micro-batches, one on its way while the experts work on the other.
 * Each rank chooses by itself whether it makes a call in one piece or in two.
 *
 * One call is under way on an xccl_ep: until it has been finished, dispatch, combine and xccl_ep_set_placement() there
 * are XCCL_INVALID_ARGUMENT, and so are the buffers that it still reads: an input buffer that it was given, the output
 * buffer of the result that is combined. A dispatch under way counts as a result that is alive. xccl_ep_close() gives it
 * up: what was published stays for the others as long as close waits.
 *
 * All memory given to _start, y_out too, must stay as it is until _finish has returned; of topk_experts, `routing` and
 * `result` nothing is needed after _start. `timeout` of _start is of a rare wait for memory that others still read.
 *
 * Errors of _start: as dispatch, of what goes wrong before anything is sent. Of _finish: XCCL_INVALID_ARGUMENT if no such
 * call has been started; else those of dispatch that end the communicator, since the others count on what was
 * published. */
xccl_status xccl_ep_dispatch_start(xccl_ep* ep, const void* x, int64_t tokens, const void* topk_experts,
                                   xccl_dtype expert_dtype, const float* topk_weights, double timeout);
xccl_status xccl_ep_dispatch_again_start(xccl_ep* ep, const void* x, int64_t tokens,
                                         const xccl_routing* routing, double timeout);
xccl_status xccl_ep_dispatch_finish(xccl_ep* ep, double timeout, xccl_result** result_out);
xccl_status xccl_ep_combine_start(xccl_ep* ep, const void* rows, xccl_result* result, const float* weights,
                                  double timeout, void* y_out);
xccl_status xccl_ep_combine_finish(xccl_ep* ep, double timeout);

/* Whether _finish of what has been started would wait for no other rank: XCCL_OK if so, else XCCL_PENDING. Never waits.
 * Errors: XCCL_INVALID_ARGUMENT if nothing has been started; else as _finish, but for XCCL_TIMEOUT. */
xccl_status xccl_ep_can_finish(xccl_ep* ep);

/* Gives the rows back to the pool, for the next dispatch. Counts and routing stay. Safe to call twice; in any
 * thread. */
void xccl_result_release(xccl_result* result);

/* Releases the rows and frees the result. In any thread. */
void xccl_result_destroy(xccl_result* result);

/* The routing of a result, valid until that is destroyed. To keep it for longer, copy it: the copy shares its
 * content, may outlive everything else, and goes back with xccl_routing_destroy(). Errors:
 * XCCL_INVALID_ARGUMENT, XCCL_OUT_OF_MEMORY. */
const xccl_routing* xccl_result_routing(const xccl_result* result);
xccl_status xccl_routing_copy(const xccl_routing* routing, xccl_routing** copy_out);
void xccl_routing_destroy(xccl_routing* copy);

/* What a routing knows: the tokens that this rank dispatched and the rows that came here; rows of each local
 * expert; and for each row the rank it came from, its token there, and the weight of that expert for that
 * token. Arrays are valid as long as the routing. For NULL: 0 or NULL. */
int64_t xccl_routing_token_count(const xccl_routing* routing);
int64_t xccl_routing_row_count(const xccl_routing* routing);
const int64_t* xccl_routing_counts(const xccl_routing* routing);
const int32_t* xccl_routing_src_rank(const xccl_routing* routing);
const int32_t* xccl_routing_src_token(const xccl_routing* routing);
const float* xccl_routing_weights(const xccl_routing* routing);

/* --------------------------------------------------------------- Expert parallelism: what memory it takes */

/* What an xccl_ep of some shape, and its communicator, take on one rank, line by line. Nothing is allocated, no
 * job is needed. */
typedef struct xccl_plan xccl_plan;

/* What is asked. Make one with xccl_plan_load_init(), then fill in rank_count.
 * size        of this struct, as the program knows it; set by xccl_plan_load_init().
 * rank_count  ranks of the job.
 * rank        the one to plan for; 0 by default.
 * tokens      dispatched by this rank per call; -1, the default: max_tokens.
 * rows        received by this rank per call at the most; -1, the default: what an even spread of as many tokens on
 *             every rank brings.
 * in_place    nonzero: combine is always given xccl_result_x() itself, so output buffers are never used. Not where
 *             dispatch quantises. */
typedef struct xccl_plan_load {
  size_t size;
  int rank_count;
  int rank;
  int64_t tokens;
  int64_t rows;
  int in_place;
} xccl_plan_load;

/* Fills in the defaults. `size` is sizeof(xccl_plan_load). */
void xccl_plan_load_init(xccl_plan_load* load, size_t size);

/* One use of memory: what for; bytes of memory in steady state; bytes of address space, most of which never becomes
 * memory; what would make it smaller, or "". */
typedef struct xccl_plan_line {
  const char* what;
  uint64_t committed;
  uint64_t reserved;
  const char* shrink;
} xccl_plan_line;

/* Errors: XCCL_INVALID_ARGUMENT, XCCL_OUT_OF_MEMORY: as of joining and of xccl_ep_create(). */
xccl_status xccl_plan_create(const xccl_ep_config* config, const xccl_plan_load* load, xccl_plan** plan_out);

/* The lines, valid as long as the plan; `count_out` gets how many. */
const xccl_plan_line* xccl_plan_lines(const xccl_plan* plan, size_t* count_out);

void xccl_plan_destroy(xccl_plan* plan);

/* [declarations end] */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif

#endif /* XCCL_H */
