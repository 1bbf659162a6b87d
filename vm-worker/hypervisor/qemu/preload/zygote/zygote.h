// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * A zygote is a QEMU whose VM is stopped at the point where its guest is ready
 * and nobody's. On order it forks: each child is a VM that continues from there.
 * What fork(2) shares until it is written to is all that a VM under TCG costs
 * and a template of memory alone does not hold: the code that was translated
 * already, and what QEMU itself has allocated.
 *
 * fork(2) copies the memory and one thread. So before it every other thread is
 * brought to a stop in a signal handler (threads.c), and in the child each is
 * made again on its own stack and returns from its handler as if nothing had
 * happened. As no thread was left out, no lock and no list of theirs is
 * inconsistent. What must not be shared is replaced (descriptors.c), the child gets
 * the jail of any other VM (jail.c), and only then its threads.
 *
 * This library is preloaded into zygotes only, and changes nothing in a process
 * without BULKHEAD_ZYGOTE in its environment. Between fork and the end of begin() nothing may
 * be called that takes a lock of the C library, malloc above all: its holder may stand still.
 */
#pragma once

#define _GNU_SOURCE
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Names of this library must not be taken for the same ones of QEMU's or its libraries'. */
#pragma GCC visibility push(hidden)

/* As vm-worker/hypervisor/qemu/zygoteorder.go has it: the two are built together. */
#define ORDER_VERSION 2
#define ORDER_FILES 16

struct order {
	uint32_t version;
	uint32_t mergeable;               /* let the host merge the guest's memory */
	uint64_t capabilities;            /* those that the child keeps */
	uint32_t file_count;              /* descriptors that come with the order, after the child's control socket */
	int32_t targets[ORDER_FILES];     /* the numbers they replace */
	char name[80];                    /* instead of the zygote's own, where both are shown */
	char own_name[80];
	char hostname[64];
	char stage[32], export[32];       /* the two places of the share's tmpfs */
	char stage_options[64];
};

/* interpose.c */
enum { MOST_MEMORIES = 64 };
extern int control_fd;            /* -1: this process is no zygote */
extern struct guest_memory {      /* what QEMU declared to be its guest's */
	void *start;
	size_t length;
} guest_memory[MOST_MEMORIES];
extern int guest_memories;

/* order.c: looks for an order and carries it out. In the child it returns 1. */
int obey(void);

/* threads.c */
const char *park_threads(void);   /* an error, after which none is parked */
void release_threads(void);
long fork_parked(unsigned long flags);
const char *revive_threads(void); /* in the child */
extern int park_signal;

/* descriptors.c */
struct given {
	int control;              /* the child's */
	int files[ORDER_FILES];
};
const char *check_descriptors(const struct order *o, const struct given *g); /* NULL, "busy", or an error */
const char *replace_descriptors(const struct order *o, const struct given *g);
const char *reopen_share(void);

/* jail.c */
const char *enter_jail(const struct order *o);
const char *drop_capabilities(uint64_t keep);
void keep_filter(void *context);  /* of libseccomp */
const char *apply_filter(void);
extern bool have_filter;

/* generation.c */
const char *find_generation(void);
const char *renew_generation(void);

/* translations.c */
void shrink_translation_table(void);
void watch_translations(void);

/* buckets.c */
enum { BUCKET = 64 };
bool open_buckets(void);
void *take_buckets(size_t length); /* all zeroes, and never given back; NULL: there are no more */
void keep_buckets_apart(void);

/* merging.c */
void merge_memory(void);

/* names.c */
void rename_process(const char *from, const char *to);

/* proc.c */
int read_file(const char *path, char *buffer, size_t size); /* bytes, always terminated; -1 */
bool write_file(const char *path, const char *text);
int each_entry(const char *directory, int (*visit)(int number, void *data), void *data);

#pragma GCC visibility pop
