// Everything in aios.h, from two threads at once: what is right works, what is wrong is refused.
// The test that runs this looks for leaks and invalid reads. Arguments: a model, the bytes of
// memory for a second context whose weights are read from disk, and a copy of the model.
#include "aios.h"
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, aios_last_error());\
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static const uint64_t BLOCK_BYTES_MOST = 1 << 20;

static const char *model;
static aios_context shared;

static aios_context open_with(uint32_t positions, uint64_t ram_bytes) {
    aios_options options = {.size = sizeof options};
    options.positions = positions;
    options.threads = 1;
    options.plan = AIOS_PLAN_OFF;
    options.ram_bytes = ram_bytes;
    aios_context context = 0;
    CHECK(aios_init(model, &options, &context) == AIOS_OK);
    CHECK(context != 0);
    return context;
}

// Reads every byte of every block that has an address; returns how many stream.
static uint32_t look_at_blocks(aios_context context) {
    uint32_t count = 0, streamed = 0;
    CHECK(aios_block_count(context, &count) == AIOS_OK && count > 0);
    for (uint32_t number = 0; number < count; number++) {
        aios_block block = {.size = sizeof block};
        CHECK(aios_resolve_block(context, number, &block) == AIOS_OK);
        CHECK(block.size == sizeof block && block.bytes > 0 && block.rows > 0);
        CHECK(block.bytes <= BLOCK_BYTES_MOST);
        uint32_t place = block.flags & (AIOS_BLOCK_HOT | AIOS_BLOCK_WARM | AIOS_BLOCK_STREAM);
        CHECK(place != 0 && (place & (place - 1)) == 0);
        CHECK((block.address == NULL) == (place == AIOS_BLOCK_STREAM));
        streamed += block.address == NULL;
        volatile uint8_t sum = 0;
        for (uint64_t at = 0; block.address != NULL && at < block.bytes; at++)
            sum ^= block.address[at];
        // A tensor's blocks follow one another, and this one is among them.
        uint32_t first = 0, blocks = 0;
        CHECK(aios_find_blocks(context, block.tensor, &first, &blocks) == AIOS_OK);
        CHECK(first <= number && number < first + blocks);
        uint32_t activity = 0;
        CHECK(aios_is_row_active(context, number, block.first_row, &activity) == AIOS_OK);
        int embedding = strcmp(block.tensor, "token_embd.weight") == 0;
        CHECK(activity == (embedding ? AIOS_ROW_BY_TOKEN : AIOS_ROW_ALWAYS));
        CHECK(((block.flags & AIOS_BLOCK_SPARSE) != 0) == (activity == AIOS_ROW_BY_TOKEN));
        uint64_t beyond = block.first_row + block.rows;
        CHECK(aios_is_row_active(context, number, beyond, &activity) == AIOS_OUT_OF_RANGE);
    }
    aios_block block = {.size = sizeof block};
    CHECK(aios_resolve_block(context, count, &block) == AIOS_OUT_OF_RANGE);
    CHECK(aios_resolve_block(context, UINT32_MAX, &block) == AIOS_OUT_OF_RANGE);
    return streamed;
}

// Greedy ids that follow a text.
static void follow(aios_context context, uint32_t *out, size_t wanted) {
    static const char text[] = "Once upon a time";
    size_t count = 0;
    aios_status none = aios_tokenize(context, text, strlen(text), NULL, 0, &count);
    CHECK(none == AIOS_BUFFER_TOO_SMALL && count > 1);
    uint32_t *ids = malloc(count * sizeof *ids);
    CHECK(aios_tokenize(context, text, strlen(text), ids, count, &count) == AIOS_OK);
    CHECK(aios_read(context, ids, count, &out[0]) == AIOS_OK);
    free(ids);
    for (size_t i = 1; i < wanted; i++)
        CHECK(aios_read(context, &out[i - 1], 1, &out[i]) == AIOS_OK);
    aios_telemetry telemetry = {.size = sizeof telemetry};
    CHECK(aios_telemetry_read(context, &telemetry) == AIOS_OK);
    CHECK(telemetry.tokens == count + wanted - 1 && telemetry.passes == wanted);
    CHECK(telemetry.blocks_resolved > 0 && telemetry.bytes_resolved > 0);
    CHECK(telemetry.hot_hit_ratio >= 0 && telemetry.hot_hit_ratio <= 1);
    CHECK(telemetry.rows_skipped == 0 && telemetry.deltas_applied == 0);
    CHECK(strlen(telemetry.isa) > 0);
    size_t length = 0;
    char small[1], json[4096];
    CHECK(aios_telemetry_json(context, small, 1, &length) == AIOS_BUFFER_TOO_SMALL);
    CHECK(length < sizeof json);
    CHECK(aios_telemetry_json(context, json, sizeof json, &length) == AIOS_OK);
    CHECK(strlen(json) == length && strstr(json, "\"blocks_resolved\":") != NULL);
    char bytes[256];
    uint32_t ends = 2;
    CHECK(aios_token_bytes(context, out[0], bytes, sizeof bytes, &length) == AIOS_OK);
    CHECK(aios_is_end(context, out[0], &ends) == AIOS_OK && ends <= 1);
    CHECK(aios_reset(context) == AIOS_OK);
    CHECK(aios_telemetry_read(context, &telemetry) == AIOS_OK && telemetry.tokens == 0);
    CHECK(isnan(telemetry.hot_hit_ratio));
}

static void refuse(aios_context context) {
    uint32_t number = 0;
    size_t length = 0;
    aios_context made = 0;
    aios_options options = {.size = sizeof options};
    aios_block block = {.size = sizeof block};
    CHECK(aios_init(NULL, &options, &made) == AIOS_NULL_POINTER);
    CHECK(aios_init(model, &options, NULL) == AIOS_NULL_POINTER);
    CHECK(strstr(aios_last_error(), "context is NULL") != NULL);
    CHECK(aios_init("no such file", NULL, &made) == AIOS_LOAD);
    CHECK(strstr(aios_last_error(), "no such file") != NULL);
    options.size = 4;
    CHECK(aios_init(model, &options, &made) == AIOS_BAD_SIZE);
    options.size = sizeof options;
    options.plan = 7;
    CHECK(aios_init(model, &options, &made) == AIOS_BAD_ARGUMENT);
    options.plan = AIOS_PLAN_OFF;
    options.share = 7;
    CHECK(aios_init(model, &options, &made) == AIOS_BAD_ARGUMENT);
    options.share = AIOS_SHARE_FILES;
    options.weights = 7;
    CHECK(aios_init(model, &options, &made) == AIOS_BAD_ARGUMENT);
    options.weights = AIOS_WEIGHTS_STORED;
    options.plan = AIOS_PLAN_ON;
    options.plan_folder = "no such folder";
    CHECK(aios_init(model, &options, &made) == AIOS_PLAN);
    options.plan = AIOS_PLAN_OFF;
    options.ram_bytes = 1;
    CHECK(aios_init(model, &options, &made) == AIOS_NO_MEMORY);
    options.ram_bytes = 0;
    options.positions = UINT32_MAX;
    CHECK(aios_init(model, &options, &made) == AIOS_BAD_ARGUMENT && made == 0);
    const aios_context wrong[] = {0, UINT64_MAX, context + 1000};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK(aios_destroy(wrong[i]) == AIOS_BAD_HANDLE);
        CHECK(aios_reset(wrong[i]) == AIOS_BAD_HANDLE);
        CHECK(aios_block_count(wrong[i], &number) == AIOS_BAD_HANDLE);
        CHECK(aios_resolve_block(wrong[i], 0, &block) == AIOS_BAD_HANDLE);
        CHECK(aios_read(wrong[i], &number, 1, &number) == AIOS_BAD_HANDLE);
    }
    CHECK(aios_hardware_profile(NULL) == AIOS_NULL_POINTER);
    CHECK(aios_block_count(context, NULL) == AIOS_NULL_POINTER);
    CHECK(aios_resolve_block(context, 0, NULL) == AIOS_NULL_POINTER);
    block.size = 8;
    CHECK(aios_resolve_block(context, 0, &block) == AIOS_BAD_SIZE);
    CHECK(aios_find_blocks(context, NULL, &number, &number) == AIOS_NULL_POINTER);
    CHECK(aios_find_blocks(context, "blk.0.ffn_up.weight", NULL, &number) == AIOS_NULL_POINTER);
    CHECK(aios_find_blocks(context, "blk.99.ffn_up.weight", &number, &number) == AIOS_NOT_FOUND);
    CHECK(aios_find_blocks(context, "\xff", &number, &number) == AIOS_NOT_FOUND);
    CHECK(aios_is_row_active(context, 0, 0, NULL) == AIOS_NULL_POINTER);
    CHECK(aios_is_row_active(context, 0, UINT64_MAX, &number) == AIOS_OUT_OF_RANGE);
    CHECK(aios_telemetry_read(context, NULL) == AIOS_NULL_POINTER);
    CHECK(aios_telemetry_json(context, NULL, 4096, &length) == AIOS_NULL_POINTER);
    CHECK(aios_telemetry_json(context, NULL, 0, NULL) == AIOS_NULL_POINTER);
    CHECK(aios_tokenize(context, NULL, 3, NULL, 0, &length) == AIOS_NULL_POINTER);
    CHECK(aios_tokenize(context, "\xff", 1, NULL, 0, &length) == AIOS_BAD_ARGUMENT);
    CHECK(aios_read(context, NULL, 1, &number) == AIOS_NULL_POINTER);
    CHECK(aios_read(context, &number, 0, &number) == AIOS_BAD_ARGUMENT);
    CHECK(aios_read(context, &number, SIZE_MAX / 2, &number) == AIOS_BAD_ARGUMENT);
    number = UINT32_MAX;
    CHECK(aios_read(context, &number, 1, &number) == AIOS_OUT_OF_RANGE);
    CHECK(aios_token_bytes(context, UINT32_MAX, NULL, 0, &length) == AIOS_OUT_OF_RANGE);
    CHECK(aios_is_end(context, UINT32_MAX, &number) == AIOS_OUT_OF_RANGE);
}

// A copy of the model at another path is read from where the model is.
static void share(const char *copy, uint32_t *out) {
    aios_options options = {.size = sizeof options, .positions = 32, .threads = 1};
    options.plan = AIOS_PLAN_OFF;
    options.share = AIOS_SHARE_MATRICES;
    aios_context first = 0, second = 0;
    CHECK(aios_init(model, &options, &first) == AIOS_OK);
    CHECK(aios_init(copy, &options, &second) == AIOS_OK);
    uint32_t count = 0;
    CHECK(aios_block_count(first, &count) == AIOS_OK);
    for (uint32_t number = 0; number < count; number++) {
        aios_block here = {.size = sizeof here}, there = {.size = sizeof there};
        CHECK(aios_resolve_block(first, number, &here) == AIOS_OK);
        CHECK(aios_resolve_block(second, number, &there) == AIOS_OK);
        CHECK(here.address == there.address && (there.flags & AIOS_BLOCK_ALIASED) != 0);
    }
    aios_telemetry telemetry = {.size = sizeof telemetry};
    CHECK(aios_telemetry_read(first, &telemetry) == AIOS_OK && telemetry.shared_bytes == 0);
    CHECK(aios_telemetry_read(second, &telemetry) == AIOS_OK);
    CHECK(telemetry.shared_bytes >= telemetry.warm_bytes && strcmp(telemetry.on, "shared") == 0);
    // The copy lives on without the model that was loaded first.
    CHECK(aios_destroy(first) == AIOS_OK);
    follow(second, out, 8);
    CHECK(aios_destroy(second) == AIOS_OK);
}

static void *thread(void *result) {
    // Each thread has its last error to itself.
    CHECK(strlen(aios_last_error()) == 0);
    CHECK(look_at_blocks(shared) == 0);
    refuse(shared);
    aios_context own = open_with(64, 0);
    follow(own, result, 8);
    CHECK(aios_destroy(own) == AIOS_OK);
    CHECK(aios_destroy(own) == AIOS_BAD_HANDLE);
    // Both threads read in the shared context until it is full.
    uint32_t next = 1;
    aios_status status = AIOS_OK;
    while (status == AIOS_OK)
        status = aios_read(shared, &next, 1, &next);
    CHECK(status == AIOS_CONTEXT_FULL);
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 4);
    model = argv[1];
    CHECK(aios_abi_version() == AIOS_ABI_VERSION);
    CHECK(strcmp(aios_status_string(AIOS_OK), "done") == 0);
    CHECK(strcmp(aios_status_string(AIOS_LOAD), aios_status_string(-1)) != 0);
    aios_hardware hardware = {.size = sizeof hardware};
    CHECK(aios_hardware_profile(&hardware) == AIOS_OK);
    CHECK(hardware.processors > 0 && strlen(hardware.isa) > 0);
    shared = open_with(32, 0);
    pthread_t threads[2];
    uint32_t ids[4][8];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, thread, ids[i]) == 0);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    // Weights that are read from disk in every pass give the same tokens.
    aios_context small = open_with(32, strtoull(argv[2], NULL, 10));
    CHECK(look_at_blocks(small) > 0);
    follow(small, ids[2], 8);
    share(argv[3], ids[3]);
    for (int i = 1; i < 4; i++)
        CHECK(memcmp(ids[0], ids[i], sizeof ids[0]) == 0);
    CHECK(aios_destroy(small) == AIOS_OK && aios_destroy(shared) == AIOS_OK);
    for (int i = 0; i < 8; i++)
        printf("%u ", ids[0][i]);
    return 0;
}
