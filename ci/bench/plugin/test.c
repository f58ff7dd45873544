// SPDX-License-Identifier: Apache-2.0 OR MIT

/*
 * Tests of the plugin without QEMU: functions of this file take the place of QEMU's.
 * Ends with 0 if all pass, otherwise with a message.
 */

#define REQUEST_MILLISECONDS 200
#include "instructions.c"

#define CHECK(condition)                                                      \
    do {                                                                      \
        if (!(condition)) {                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);   \
            exit(1);                                                          \
        }                                                                     \
    } while (0)

/* A virtual CPU of QEMU executes a block often; here each block is executed once, at once. */
struct qemu_plugin_tb {
    uint64_t address;
    size_t instructions;
};

struct qemu_plugin_scoreboard {
    uint64_t sum;
};

struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t element_size)
{
    CHECK(element_size == sizeof(uint64_t));
    /* Another thread must not make the same counter now. */
    CHECK(lower_half.score == NULL || pthread_mutex_trylock(&pages_lock) == EBUSY);
    struct qemu_plugin_scoreboard *score = calloc(1, sizeof(*score));
    CHECK(score != NULL);
    return score;
}

uint64_t qemu_plugin_u64_sum(qemu_plugin_u64 entry)
{
    return __atomic_load_n(&entry.score->sum, __ATOMIC_RELAXED);
}

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb)
{
    return tb->instructions;
}

uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb)
{
    return tb->address;
}

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*callback)(struct qemu_plugin_tb *, void *),
                                           void *userdata)
{
    (void)id, (void)callback, (void)userdata;
}

void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *tb,
                                                       enum qemu_plugin_op op,
                                                       qemu_plugin_u64 entry, uint64_t value)
{
    (void)tb;
    CHECK(op == QEMU_PLUGIN_INLINE_ADD_U64);
    __atomic_fetch_add(&entry.score->sum, value, __ATOMIC_RELAXED);
}

static void execute(uint64_t address, size_t instructions)
{
    struct qemu_plugin_tb tb = { address, instructions };
    translated(&tb, NULL);
}

/* Sends `length` bytes and, if `ends`, shuts down; returns the answer. */
static const char *answer_to(const char *request, size_t length, bool ends)
{
    static char text[64];
    int sockets[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    CHECK(send(sockets[0], request, length, 0) == (ssize_t)length);
    if (ends)
        CHECK(shutdown(sockets[0], SHUT_WR) == 0);
    answer_one(sockets[1]);
    close(sockets[1]);
    ssize_t received = recv(sockets[0], text, sizeof(text) - 1, MSG_WAITALL);
    /* The other side may have left without reading all of a request. */
    text[received < 0 ? 0 : received] = '\0';
    close(sockets[0]);
    return text;
}

static bool answers(const char *request, const char *expected)
{
    return strcmp(answer_to(request, strlen(request), true), expected) == 0;
}

static void pages_are_counted(void)
{
    execute(0x400000, 1);
    execute(0x7fffffffffffffff, 2);
    execute(UPPER_HALF, 4);
    execute(0xffffffffc0280ff0, 8);
    execute(0xffffffffc0281000, 16);
    execute(0xffffffffc0281800, 32);
    /* In the same bucket as the page before. */
    execute(0xffffffffc1281000, 64);
    execute(0xffffffffffffffff, 128);
    CHECK(answers("", "255\n"));
    CHECK(answers("8000000000000000-ffffffffffffffff\n", "252\n"));
    CHECK(answers("ffffffffc0280000-ffffffffc0281000\n", "8\n"));
    CHECK(answers("ffffffffc0280000-ffffffffc0281001\n", "56\n"));
    CHECK(answers("ffffffffc0280fff-ffffffffc0282000\n", "56\n"));
    CHECK(answers("ffffffffc0281000-ffffffffc0282000\n", "48\n"));
    CHECK(answers("ffffffffc0282000-ffffffffc0283000\n", "0\n"));
}

static void bad_requests_are_refused(void)
{
    static const char *const bad[] = {
        "\n", "-\n", "x\n", "ffffffffc0280000\n", "ffffffffc0280000-\n",
        "-ffffffffc0281000\n", "ffffffffc0280000-ffffffffc0281000",
        "ffffffffc0280000-ffffffffc0281000\n\n", "ffffffffc0280000-ffffffffc0281000 ",
        " ffffffffc0280000-ffffffffc028100\n", "0xffffffffc02800-ffffffffc0281000\n",
        "ffffffffc0281000-ffffffffc0281000\n", "ffffffffc0281000-ffffffffc0280000\n",
        "fffffffffc0280000-fffffffffc028100\n", "7fffffffffffffff-ffffffffc0281000\n",
        "0-1000\n", "fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff\n",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        const char *answer = answer_to(bad[i], strlen(bad[i]), true);
        /* A client that sent too much may lose the answer, but gets no number. */
        bool refused = strcmp(answer, "invalid request\n") == 0 ||
                       (strlen(bad[i]) > REQUEST_LENGTH && *answer == '\0');
        if (!refused)
            fprintf(stderr, "the answer to %s is %s\n", bad[i], answer);
        CHECK(refused);
    }
    static const char zero[] = "ffffffffc0280000-ffffffffc0281000\n\0";
    CHECK(*answer_to(zero, sizeof(zero) - 1, true) == '\0');
}

static void a_client_that_does_not_finish_is_left(void)
{
    int64_t begin = milliseconds();
    CHECK(*answer_to("", 0, false) == '\0');
    CHECK(*answer_to("ffff", 4, false) == '\0');
    CHECK(milliseconds() - begin >= 2 * REQUEST_MILLISECONDS);
    CHECK(answers("ffffffffc0280000-ffffffffc0281000\n", "8\n"));
}

static void *execute_pages(void *unused)
{
    for (uint64_t i = 0; i < 20000; i++)
        execute(0xffffffffd0000000 + ((i % 5000) << PAGE_SHIFT), 1);
    return unused;
}

static void threads_share_the_counters(void)
{
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, execute_pages, NULL) == 0);
    for (size_t i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(answers("ffffffffd0000000-ffffffffd1388000\n", "80000\n"));
    size_t entries = 0;
    for (size_t i = 0; i < BUCKETS; i++) {
        for (struct page *page = pages[i]; page != NULL; page = page->next)
            entries += page->number >= 0xffffffffd0000 && page->number < 0xffffffffd1388;
    }
    CHECK(entries == 5000);
}

int main(void)
{
    /* A test that hangs ends. */
    alarm(60);
    lower_half = new_counter();
    pages_are_counted();
    bad_requests_are_refused();
    a_client_that_does_not_finish_is_left();
    threads_share_the_counters();
    return 0;
}
