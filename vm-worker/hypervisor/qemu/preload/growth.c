// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * Preloaded into QEMU, so that a guest has no way to memory that it was not given.
 *
 * A VM grows by a virtio-mem device, of which the host says how much the guest may plug. QEMU
 * counts what is plugged, and has the whole device in the guest's address space from the
 * start: what is not plugged is ordinary memory for whoever reads or writes there
 * (virtio 1.2, 5.15.6, tells a driver not to), so a guest with a kernel of its own could
 * fill the device without a word to anybody. Here every part that is not plugged is memory that nobody can
 * touch. QEMU tells those who registered for it (RamDiscardListener, made for VFIO) of each part: before
 * the guest hears that it is plugged, and after it was unplugged. A processor that touches what is not plugged ends its VM
 * by SIGSEGV; under KVM QEMU stops it with an internal error, and the worker then ends it; a device that is sent there fails with EFAULT.
 *
 * BULKHEAD_GROWTH names the memory backend. A QEMU that was to be held and cannot be does not run.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As QEMU's include/exec/memory.h has them, from 6.1 on; later ones have more at the end. */
struct section {
	unsigned __int128 size;
	void *region, *view;
	uint64_t offset, address;
	char more[64];
};

struct listener {
	int (*populate)(struct listener *, struct section *);
	void (*discard)(struct listener *, struct section *);
	bool twice_is_fine;
	struct section *section;
	void *next, **previous;
	char more[64];
};

static struct {
	void *(*resolve)(const char *, bool *);
	void *(*region)(void *);
	void *(*manager)(void *);
	char *(*pointer)(void *);
	uint64_t (*size)(void *);
	void (*listen)(void *, struct listener *, struct section *);
} qemu;

static const char *backend; /* NULL: nothing to hold, or it is held already */
static char *memory;

static void fail(const char *why)
{
	fprintf(stderr, "bulkhead: memory that the guest was not given cannot be kept from it: %s\n", why);
	_exit(1);
}

static int populate(struct listener *l, struct section *s)
{
	(void)l;
	return mprotect(memory + s->offset, s->size, PROT_READ | PROT_WRITE) == 0 ? 0 : -errno;
}

static void discard(struct listener *l, struct section *s)
{
	(void)l;
	/* QEMU has given the memory back already; another processor may have touched it since. */
	if (mprotect(memory + s->offset, s->size, PROT_NONE) != 0 || madvise(memory + s->offset, s->size, MADV_DONTNEED) != 0)
		fail(strerror(errno));
}

static void resolve(void)
{
	struct {
		void *pointer;
		const char *name;
	} all[] = {
		{ &qemu.resolve, "object_resolve_path" }, { &qemu.region, "host_memory_backend_get_memory" },
		{ &qemu.manager, "memory_region_get_ram_discard_manager" }, { &qemu.pointer, "memory_region_get_ram_ptr" },
		{ &qemu.size, "memory_region_size" }, { &qemu.listen, "ram_discard_manager_register_listener" },
	};

	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		void *function = dlsym(RTLD_DEFAULT, all[i].name);

		if (function == NULL)
			fail("this QEMU does not export what tells of it");
		memcpy(all[i].pointer, &function, sizeof function);
	}
}

__attribute__((constructor)) static void begin_growth(void)
{
	backend = getenv("BULKHEAD_GROWTH");
}

/* Closes the device as soon as it is made, which is long before a processor runs; a round before that finds nothing yet. */
static void hold(void)
{
	static struct listener listener = { .populate = populate, .discard = discard };
	struct section all = { 0 };
	void *object, *manager;

	if (qemu.listen == NULL)
		resolve();
	if ((object = qemu.resolve(backend, NULL)) == NULL)
		return;
	all.region = qemu.region(object);
	if ((manager = qemu.manager(all.region)) == NULL)
		return;
	memory = qemu.pointer(all.region);
	all.size = qemu.size(all.region);
	if (mprotect(memory, all.size, PROT_NONE) != 0 || madvise(memory, all.size, MADV_DONTNEED) != 0)
		fail(strerror(errno));
	backend = NULL;
	qemu.listen(manager, &listener, &all);
}

/*
 * The main loop begins each of its rounds so, with QEMU's lock held. The machine is made before the
 * first, and nothing runs in it before an order that a round hears.
 */
int g_main_context_acquire(void *context)
{
	static int (*real)(void *);

	if (real == NULL)
		*(void **)&real = dlsym(RTLD_NEXT, "g_main_context_acquire");
	if (backend != NULL && syscall(SYS_gettid) == getpid())
		hold();
	return real(context);
}
