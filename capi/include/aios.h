// libaios: a CPU inference engine for GGUF language models, for programs in C.
//
// Generated from capi/src by cbindgen 0.29.2; SPEC.md, chapter I, says what is promised.
// All functions may be called from several threads at once. None unwinds, and none keeps a pointer
// that it was given.

#ifndef AIOS_H
#define AIOS_H

#include <stddef.h>
#include <stdint.h>

// The version of this interface. It rises when a program that was compiled before would no longer
// be understood; structs grow at their ends without that.
#define AIOS_ABI_VERSION 1

// The call did what it says.
#define AIOS_OK 0

// A pointer that must not be NULL is.
#define AIOS_NULL_POINTER 1

// No context has this handle: it never had one, or it was destroyed.
#define AIOS_BAD_HANDLE 2

// The `size` of a struct is not one that this library knows.
#define AIOS_BAD_SIZE 3

// An argument is not one of those possible, or a text is not UTF-8.
#define AIOS_BAD_ARGUMENT 4

// A number is beyond what there is: a block, a row, a token id.
#define AIOS_OUT_OF_RANGE 5

// There is nothing of this name.
#define AIOS_NOT_FOUND 6

// A buffer is too small; the length that is needed was stored.
#define AIOS_BUFFER_TOO_SMALL 7

// The model file cannot be loaded.
#define AIOS_LOAD 8

// The plan that was asked for cannot be followed.
#define AIOS_PLAN 9

// The system gives too little memory, or the budget is too small.
#define AIOS_NO_MEMORY 10

// The context holds no more tokens.
#define AIOS_CONTEXT_FULL 11

// Weights could not be read of the disk, or the model gave numbers that are not finite.
#define AIOS_RUN 12

// A fault of the library itself. The context, if the call had one, is of no more use.
#define AIOS_INTERNAL 13

// Follow the model's plan where it was found to save time. Results are the same.
#define AIOS_PLAN_AUTO 0

// Follow no plan.
#define AIOS_PLAN_OFF 1

// Follow the model's plan; it is an error if there is none that can be followed.
#define AIOS_PLAN_ON 2

// A file is mapped once, however often it is opened. This is always so.
#define AIOS_SHARE_FILES 0

// Beside that, matrices that another context made so has already are read from there: of copies
// and of fine-tunes of one model there is one copy in memory. To find them each file is read
// whole once; digests of its matrices are kept in the user's cache folder.
#define AIOS_SHARE_MATRICES 1

// Weights are read as they stand in the file.
#define AIOS_WEIGHTS_STORED 0

// Weights are read from a file of repacked ones in the user's cache folder, which is made on the
// first use of a model and takes as much disk as that. It is faster and changes no result.
#define AIOS_WEIGHTS_REPACKED 1

// The same bytes of memory are other blocks, too.
#define AIOS_BLOCK_CANONICAL 1

// It is the same bytes of memory as a block before it, which is canonical.
#define AIOS_BLOCK_ALIASED 2

// A pass may leave out rows of it.
#define AIOS_BLOCK_SPARSE 4

// It lies in memory of our own, which is locked if the system allows that.
#define AIOS_BLOCK_HOT 8

// It is mapped; the system keeps it in memory while there is room.
#define AIOS_BLOCK_WARM 16

// It is read from disk in every pass, and has no address.
#define AIOS_BLOCK_STREAM 32

// Every pass reads the row.
#define AIOS_ROW_ALWAYS 1

// Whether a pass reads the row depends on its tokens.
#define AIOS_ROW_BY_TOKEN 2

// What a call came to: `AIOS_OK`, or why it did nothing.
typedef int32_t aios_status;

// The machine.
typedef struct aios_hardware {
  // sizeof(aios_hardware).
  uint32_t size;
  // Processors that this process may use.
  uint32_t processors;
  // Bytes of the last level of cache, all of its instances together; 0 if that is not known.
  uint64_t llc_bytes;
  // Bytes of memory; 0 if that is not known.
  uint64_t memory_bytes;
  // Bytes of memory that can be had now, by the system's estimate and the control group's
  // limit; 0 if that is not known.
  uint64_t available_bytes;
  // The name of the processor; empty if that is not known.
  char cpu[96];
  // The instruction set that is computed with.
  char isa[64];
} aios_hardware;

// How a context is set up.
typedef struct aios_options {
  // sizeof(aios_options).
  uint32_t size;
  // Positions of the context; 0 for the model's own, but at most 4096.
  uint32_t positions;
  // Threads that compute; 0 for all processors.
  uint32_t threads;
  // One of `AIOS_PLAN_`.
  uint32_t plan;
  // One of `AIOS_WEIGHTS_`.
  uint32_t weights;
  // One of `AIOS_SHARE_`.
  uint32_t share;
  // Bytes of memory for weights, cache and activations; what exceeds them is read from disk in
  // every pass. 0 keeps to the budget that the plan was made for, if it was made for one, or
  // lets the system decide what stays in memory.
  uint64_t ram_bytes;
  // The folder of the plan; NULL for the one in the user's cache folder.
  const char *plan_folder;
} aios_options;

// A context: a model that is loaded, and a sequence of tokens. 0 is never one.
typedef uint64_t aios_context;

// A block of weights.
typedef struct aios_block {
  // sizeof(aios_block).
  uint32_t size;
  // Some of `AIOS_BLOCK_`.
  uint32_t flags;
  // Its bytes, which must not be written; NULL if it is read from disk in every pass. They are
  // there until the context is destroyed.
  const uint8_t *address;
  // Their number.
  uint64_t bytes;
  // The first of its rows, by its number in the tensor.
  uint64_t first_row;
  // Its rows.
  uint64_t rows;
  // 1 if 16 rows lie interleaved, 0 if rows stand as in the file.
  uint32_t packed;
  // 0.
  uint32_t reserved;
  // The name of its tensor. Rows of a head that is the embedding are those of `output.weight`.
  char tensor[64];
  // How elements are stored.
  char dtype[16];
} aios_block;

// What a context has done since it was made or reset, and where its weights live.
typedef struct aios_telemetry {
  // sizeof(aios_telemetry).
  uint32_t size;
  // Steps of the degradation ladder that are active; `ladder` names them.
  uint32_t ladder_steps;
  // Tokens that went through the model, and passes over the weights.
  uint64_t tokens;
  // See `tokens`.
  uint64_t passes;
  // Blocks that passes asked for, and their bytes.
  uint64_t blocks_resolved;
  // See `blocks_resolved`.
  uint64_t bytes_resolved;
  // Of these, bytes in memory of our own, and bytes that were streamed.
  uint64_t bytes_hot;
  // See `bytes_hot`.
  uint64_t bytes_streamed;
  // Deltas that were added to products of canonical matrices.
  uint64_t deltas_applied;
  // Rows of the head that passes did not have to read, and neurons' rows of up projections and
  // columns of down projections.
  uint64_t rows_skipped;
  // Streamed blocks that were there before they were asked for.
  uint64_t prefetches;
  // Bytes that were read of the disk, and reads.
  uint64_t disk_bytes;
  // See `disk_bytes`.
  uint64_t disk_reads;
  // Weights in memory of our own, mapped, and streamed, in bytes.
  uint64_t hot_bytes;
  // See `hot_bytes`.
  uint64_t warm_bytes;
  // See `hot_bytes`.
  uint64_t stream_bytes;
  // Weights that are read from another context's memory, in bytes.
  uint64_t shared_bytes;
  // The budget of memory, in bytes; 0 without one.
  uint64_t budget_bytes;
  // `bytes_hot` over `bytes_resolved`; NaN if nothing was resolved.
  double hot_hit_ratio;
  // Milliseconds that passes waited for the disk.
  double disk_wait_ms;
  // The instruction set.
  char isa[64];
  // What is on, by names with commas between them: `shared`, `plan` (or `plan_refused`, where
  // there is one that is of another model or machine, or damaged), and those of the list `on`
  // of the program's `--stats json`: `repacked`, `screen`, `zeros`, `kept`, `ahead`, `budget`.
  char on[64];
  // The steps of the ladder by name, with commas between them.
  char ladder[256];
} aios_telemetry;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the interface that the library has: `AIOS_ABI_VERSION` of its header.
uint32_t aios_abi_version(void);

// What a status means. The text is never freed; a number that is no status has one, too.
const char *aios_status_string(aios_status status);

// What the last call of this thread that failed says of it, with names and remedies; empty if
// none has failed. The text is valid until another call of this thread fails, or it ends.
const char *aios_last_error(void);

// Stores what the machine is.
//
// # Safety
// `hardware` is NULL or a struct of as many bytes as its field `size` says.
aios_status aios_hardware_profile(struct aios_hardware *hardware);

// Loads the model in the file at `path` and stores the handle of its context. `options` may be
// NULL for the defaults, which a struct of zeros with its size means, too.
//
// # Safety
// `path` is NULL or a string that ends with NUL; `options` is NULL or a struct of as many bytes
// as its field `size` says, with such strings; `context` is NULL or may be written.
aios_status aios_init(const char *path, const struct aios_options *options, aios_context *context);

// Forgets a context. Calls on it that other threads are in are finished first by these; addresses
// of its blocks are invalid then.
aios_status aios_destroy(aios_context context);

// Stores the number of blocks of a context's weights. They are numbered from 0.
//
// # Safety
// `count` is NULL or may be written.
aios_status aios_block_count(aios_context context, uint32_t *count);

// Stores the first block of the tensor `name`, such as `blk.0.ffn_up.weight`, and the number of
// its blocks, which follow one another.
//
// # Safety
// `name` is NULL or a string that ends with NUL; `first` and `count` are NULL or may be written.
aios_status aios_find_blocks(aios_context context,
                             const char *name,
                             uint32_t *first,
                             uint32_t *count);

// Stores where a block is and what is true of it. This is an index into a table: no lock is
// waited for that a pass holds.
//
// # Safety
// `block` is NULL or a struct of as many bytes as its field `size` says.
aios_status aios_resolve_block(aios_context context, uint32_t number, struct aios_block *block);

// Stores one of `AIOS_ROW_` for a row of a block, by its number in the tensor.
//
// # Safety
// `activity` is NULL or may be written.
aios_status aios_is_row_active(aios_context context,
                               uint32_t block,
                               uint64_t row,
                               uint32_t *activity);

// Stores what a context has done and where its weights live.
//
// # Safety
// `telemetry` is NULL or a struct of as many bytes as its field `size` says.
aios_status aios_telemetry_read(aios_context context, struct aios_telemetry *telemetry);

// Stores the telemetry as a JSON object with a NUL behind it: that of `residency` in the
// program's `--stats json`. `length` gets the bytes without the NUL, also if the buffer is too
// small; with a capacity of 0 the buffer may be NULL.
//
// # Safety
// `buffer` is NULL or has `capacity` bytes; `length` is NULL or may be written.
aios_status aios_telemetry_json(aios_context context,
                                char *buffer,
                                size_t capacity,
                                size_t *length);

// Stores the token ids of a text of `bytes` bytes, which need not end with NUL, with the token in
// front that the model begins a text with, if it has one. `count` gets their number, also if
// `ids` is too small; with a capacity of 0 it may be NULL.
//
// # Safety
// `text` is NULL or has `bytes` bytes; `ids` is NULL or has `capacity` ids; `count` is NULL or may
// be written.
aios_status aios_tokenize(aios_context context,
                          const char *text,
                          size_t bytes,
                          uint32_t *ids,
                          size_t capacity,
                          size_t *count);

// Stores the bytes of a token, which may be part of a character and have no NUL behind them.
// `length` gets their number, also if the buffer is too small; with a capacity of 0 it may be
// NULL.
//
// # Safety
// `buffer` is NULL or has `capacity` bytes; `length` is NULL or may be written.
aios_status aios_token_bytes(aios_context context,
                             uint32_t id,
                             char *buffer,
                             size_t capacity,
                             size_t *length);

// Reads ids at the positions behind those that were read before, and stores the likeliest id to
// follow. Calls on one context by several threads come one after another. A call that fails
// leaves the context with the positions that it had.
//
// # Safety
// `ids` is NULL or has `count` ids; `next` is NULL or may be written.
aios_status aios_read(aios_context context, const uint32_t *ids, size_t count, uint32_t *next);

// Stores 1 if a text ends with this token, and 0 if not.
//
// # Safety
// `ends` is NULL or may be written.
aios_status aios_is_end(aios_context context, uint32_t id, uint32_t *ends);

// Forgets all positions that were read, and sets the counts of the telemetry to zero.
aios_status aios_reset(aios_context context);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* AIOS_H */
