// SPDX-License-Identifier: Apache-2.0 OR MIT

/*
 * A QEMU TCG plugin that counts the instructions of the guest.
 *
 * Each translated block adds its number of instructions to a counter of the virtual CPU
 * that executes it; the addition is part of the translated code. A thread answers each
 * connection to a socket with the sum of the counters as a decimal number and a line end,
 * while the guest runs on.
 *
 * Argument: socket=PATH, where the thread listens.
 *
 * The plugin does not know which program or function executes an instruction, and it
 * counts a block as a whole, also when an exception ends it early.
 */

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
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

/* One counter for each virtual CPU. */
static qemu_plugin_u64 instructions;

static void translated(struct qemu_plugin_tb *tb, void *userdata)
{
    (void)userdata;
    qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
        tb, QEMU_PLUGIN_INLINE_ADD_U64, instructions, qemu_plugin_tb_n_insns(tb));
}

static void *answer(void *listener)
{
    for (;;) {
        int connection = accept((int)(intptr_t)listener, NULL, NULL);
        if (connection < 0)
            continue;
        char line[32];
        int length = snprintf(line, sizeof(line), "%" PRIu64 "\n",
                              qemu_plugin_u64_sum(instructions));
        /* A client that has gone must not end QEMU by SIGPIPE. */
        send(connection, line, (size_t)length, MSG_NOSIGNAL);
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
    instructions.score = qemu_plugin_scoreboard_new(sizeof(uint64_t));
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
    if (start(listener) != 0) {
        fprintf(stderr, "instructions: no thread can be started\n");
        return 1;
    }
    return 0;
}
