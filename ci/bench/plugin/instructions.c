// SPDX-License-Identifier: Apache-2.0 OR MIT

/*
 * A QEMU TCG plugin that counts the instructions of the guest.
 *
 * Each translated block adds its number of instructions to one counter of the virtual CPU
 * that executes it; the addition is part of the translated code. Blocks in the upper half
 * of the address space, the kernel's, have a counter for each page of 4 KiB. All other
 * blocks share one.
 *
 * A thread answers requests on a socket while the guest runs on. A client sends its request
 * and shuts down its writing side. The answer is a decimal number and a line end:
 *
 *   request        answer
 *   (empty)        all instructions
 *   START-END\n    instructions of the pages with the addresses from START to before END,
 *                  two hexadecimal numbers in the upper half of the address space
 *   another        the line "invalid request"
 *
 * A client that has sent no whole request after REQUEST_MILLISECONDS gets no answer.
 *
 * Argument: socket=PATH, where the thread listens.
 *
 * The plugin does not know which program or function executes an instruction. It counts a
 * block as a whole, also when an exception ends it early, and on the page where it begins.
 */

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/*
 * What the plugin needs of QEMU's interface, version 7 (QEMU 11.1): Debian packages no
 * qemu-plugin.h.
 */
typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_scoreboard;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64, QEMU_PLUGIN_INLINE_STORE_U64 };
typedef struct {
    struct qemu_plugin_scoreboard *score;
    size_t offset;
} qemu_plugin_u64;

struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t element_size);
uint64_t qemu_plugin_u64_sum(qemu_plugin_u64 entry);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*callback)(struct qemu_plugin_tb *, void *),
                                           void *userdata);
void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *tb,
                                                       enum qemu_plugin_op op,
                                                       qemu_plugin_u64 entry, uint64_t value);

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 7;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                               char **argv);

#define UPPER_HALF (UINT64_C(1) << 63)
#define PAGE_SHIFT 12

/* Power of two; a kernel executes some thousands of pages. */
#define BUCKETS 4096

/* Two numbers of 16 digits, the sign between them, and the line end. */
#define REQUEST_LENGTH 34
#ifndef REQUEST_MILLISECONDS
#define REQUEST_MILLISECONDS 10000
#endif

/* The counter of a page. Entries are never freed: translated blocks refer to the counter. */
struct page {
    struct page *next;
    uint64_t number;
    qemu_plugin_u64 instructions;
};

/* The counter of all blocks in the lower half of the address space. */
static qemu_plugin_u64 lower_half;

/* Virtual CPUs translate at the same time, each in a thread of its own. */
static pthread_mutex_t pages_lock = PTHREAD_MUTEX_INITIALIZER;
static struct page *pages[BUCKETS];

/* The numbers of pages from `first` to `last`, both included. */
struct range {
    uint64_t first, last;
};

static qemu_plugin_u64 new_counter(void)
{
    return (qemu_plugin_u64){ .score = qemu_plugin_scoreboard_new(sizeof(uint64_t)) };
}

/* The counter of the page with this number, made when the page is first translated. */
static qemu_plugin_u64 counter_of(uint64_t number)
{
    struct page **bucket = &pages[number % BUCKETS];
    pthread_mutex_lock(&pages_lock);
    struct page *page = *bucket;
    while (page != NULL && page->number != number)
        page = page->next;
    if (page == NULL) {
        page = malloc(sizeof(*page));
        if (page == NULL) {
            /* A count without this page would be wrong, and nothing would show it. */
            fprintf(stderr, "instructions: no memory\n");
            abort();
        }
        *page = (struct page){ .next = *bucket, .number = number, .instructions = new_counter() };
        *bucket = page;
    }
    qemu_plugin_u64 counter = page->instructions;
    pthread_mutex_unlock(&pages_lock);
    return counter;
}

static void translated(struct qemu_plugin_tb *tb, void *userdata)
{
    (void)userdata;
    uint64_t address = qemu_plugin_tb_vaddr(tb);
    qemu_plugin_u64 counter =
        address >= UPPER_HALF ? counter_of(address >> PAGE_SHIFT) : lower_half;
    qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, QEMU_PLUGIN_INLINE_ADD_U64, counter,
                                                      qemu_plugin_tb_n_insns(tb));
}

/* The instructions of the pages in `range`. */
static uint64_t sum_of(struct range range)
{
    uint64_t sum = 0;
    pthread_mutex_lock(&pages_lock);
    for (size_t i = 0; i < BUCKETS; i++) {
        for (struct page *page = pages[i]; page != NULL; page = page->next) {
            if (page->number >= range.first && page->number <= range.last)
                sum += qemu_plugin_u64_sum(page->instructions);
        }
    }
    pthread_mutex_unlock(&pages_lock);
    return sum;
}

/*
 * Reads a hexadecimal number of 1 to 16 digits at `*text` and moves `*text` behind it.
 * strtoull would also take signs, spaces and "0x".
 */
static bool parse_address(const char **text, uint64_t *address)
{
    static const char digits[] = "0123456789abcdef";
    int length = 0;
    *address = 0;
    for (; **text != '\0'; (*text)++, length++) {
        const char *digit = strchr(digits, **text);
        if (digit == NULL)
            break;
        if (length == 16)
            return false;
        *address = *address << 4 | (uint64_t)(digit - digits);
    }
    return length != 0;
}

/* Whether `text` is START-END and a line end; the pages are stored in `*range`. */
static bool parse_range(const char *text, struct range *range)
{
    uint64_t start, end;
    if (!parse_address(&text, &start) || *text++ != '-' || !parse_address(&text, &end) ||
        strcmp(text, "\n") != 0 || start < UPPER_HALF || end <= start)
        return false;
    *range = (struct range){ start >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT };
    return true;
}

static int64_t milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * Reads until the client shuts down its writing side. Stores the request as a string of at
 * most `size` - 1 bytes; a longer one is cut there. Returns its length, or -1 if the client
 * is gone or too late.
 */
static ssize_t receive(int connection, char *request, size_t size)
{
    int64_t deadline = milliseconds() + REQUEST_MILLISECONDS;
    size_t length = 0;
    while (length < size - 1) {
        struct pollfd readable = { .fd = connection, .events = POLLIN };
        int64_t left = deadline - milliseconds();
        if (left <= 0)
            return -1;
        int ready = poll(&readable, 1, (int)left);
        if (ready < 0 && errno != EINTR)
            return -1;
        if (ready <= 0)
            continue;
        ssize_t received = recv(connection, request + length, size - 1 - length, MSG_DONTWAIT);
        if (received < 0 && errno != EINTR && errno != EAGAIN)
            return -1;
        if (received == 0)
            break;
        if (received > 0)
            length += (size_t)received;
    }
    request[length] = '\0';
    /* A zero byte within the request would hide the rest of it. */
    return strlen(request) == length ? (ssize_t)length : -1;
}

static void answer_one(int connection)
{
    /* One byte more than the longest request, so that a longer one is noticed. */
    char request[REQUEST_LENGTH + 2];
    char line[32] = "invalid request\n";
    struct range range;
    ssize_t length = receive(connection, request, sizeof(request));
    if (length < 0)
        return;
    if (length == 0) {
        static const struct range all = { 0, UINT64_MAX };
        uint64_t sum = qemu_plugin_u64_sum(lower_half) + sum_of(all);
        snprintf(line, sizeof(line), "%" PRIu64 "\n", sum);
    } else if (parse_range(request, &range)) {
        snprintf(line, sizeof(line), "%" PRIu64 "\n", sum_of(range));
    }
    /* A client that has gone must not end QEMU by SIGPIPE. */
    send(connection, line, strlen(line), MSG_NOSIGNAL);
}

static void *answer(void *listener)
{
    for (;;) {
        int connection = accept((int)(intptr_t)listener, NULL, NULL);
        if (connection < 0)
            continue;
        answer_one(connection);
        close(connection);
    }
    return NULL;
}

/* Starts the thread. Signals are QEMU's: its main thread handles them. */
static int start(int listener)
{
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int error = pthread_create(&thread, NULL, answer, (void *)(intptr_t)listener);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    static const char option[] = "socket=";
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], option, strlen(option)) == 0) {
            const char *path = argv[i] + strlen(option);
            if (strlen(path) < sizeof(address.sun_path))
                strcpy(address.sun_path, path);
        }
    }
    if (address.sun_path[0] == '\0') {
        fprintf(stderr, "instructions: socket=PATH is missing or too long\n");
        return 1;
    }
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        listen(listener, 1) != 0) {
        perror("instructions: listening");
        return 1;
    }
    lower_half = new_counter();
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
    if (start(listener) != 0) {
        fprintf(stderr, "instructions: no thread can be started\n");
        return 1;
    }
    return 0;
}
