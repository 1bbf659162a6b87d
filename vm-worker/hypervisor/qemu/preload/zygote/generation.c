// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * The generation id by which a guest learns that it is a copy, and its kernel makes its random
 * generator another at once (QEMU's docs/specs/vmgenid; the guest's drivers/virt/vmgenid.c). QEMU chooses one
 * when it starts and has no order for a new one, so its child does what QEMU does after it has loaded a
 * VM's state: it writes the id into the guest's memory and raises the ACPI event. Both are functions
 * that QEMU exports; where they are missing, or the id is not found, there are no children.
 */
#include "zygote.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

enum {
	ID = 16,
	PLACE = 40,           /* in its page, VMGENID_GUID_OFFSET */
	CHANGED = 32,         /* ACPI_VMGENID_CHANGE_STATUS */
	LEAST = 16 << 20,     /* no guest has less memory; QEMU's ROMs are smaller */
	AT_ONCE = 1024,       /* pages */
};

static struct {
	void *(*query)(void *); /* the answer begins with a pointer to the text */
	void (*lock)(const char *, int);
	void (*unlock)(void);
	void (*write)(uint64_t, void *, uint64_t, bool);
	void *(*device)(const char *, const char *, bool *);
	void (*send)(void *, int);
} qemu;

static uint64_t place; /* of the id in the guest's memory; 0: not found yet */

static bool resolve(void)
{
	struct {
		void *pointer;
		const char *name;
	} all[] = {
		{ &qemu.query, "qmp_query_vm_generation_id" }, { &qemu.lock, "qemu_mutex_lock_iothread_impl" },
		{ &qemu.unlock, "qemu_mutex_unlock_iothread" }, { &qemu.write, "cpu_physical_memory_rw" },
		{ &qemu.device, "object_resolve_path_type" }, { &qemu.send, "acpi_send_event" },
	};

	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		void *function = dlsym(RTLD_DEFAULT, all[i].name);

		if (function == NULL)
			return false;
		memcpy(all[i].pointer, &function, sizeof function);
	}
	return true;
}

static int digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* A UUID as it is written, in the order of bytes that a guest sees (its first three fields are little-endian). */
static bool parse(const char *text, unsigned char id[ID])
{
	static const unsigned char order[ID] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };

	for (int n = 0; n < ID; n++) {
		if (*text == '-')
			text++;
		if (digit(text[0]) < 0 || digit(text[1]) < 0)
			return false;
		id[order[n]] = digit(text[0]) << 4 | digit(text[1]);
		text += 2;
	}
	return true;
}

/* A page with the id and nothing else is the firmware's; the guest's kernel has a copy among other things. */
static bool holds(const char *page, size_t size, const unsigned char id[ID])
{
	if (memcmp(page + PLACE, id, ID) != 0)
		return false;
	for (size_t i = 0; i < size; i++)
		if (page[i] != 0 && (i < PLACE || i >= PLACE + ID))
			return false;
	return true;
}

/* From the end, where firmware puts it, and only where there is a page: what is not there need not come to be. */
static bool find(const struct guest_memory *m, const unsigned char id[ID])
{
	unsigned char there[AT_ONCE];
	size_t page = sysconf(_SC_PAGESIZE), pages = m->length / page;

	while (pages > 0) {
		size_t n = pages < AT_ONCE ? pages : AT_ONCE;
		char *from = (char *)m->start + (pages - n) * page;

		if (mincore(from, n * page, there) != 0)
			return false;
		for (size_t i = n; i-- > 0;)
			if ((there[i] & 1) && holds(from + i * page, page, id)) {
				place = from + i * page - (char *)m->start + PLACE;
				return true;
			}
		pages -= n;
	}
	return false;
}

/* To be called before threads stand still, as QEMU allocates memory. */
const char *find_generation(void)
{
	unsigned char id[ID];

	if (place != 0)
		return NULL;
	if (!resolve())
		return "this QEMU does not export what gives a child a generation id of its own";
	qemu.lock(__FILE__, __LINE__);
	void *info = qemu.query(NULL);
	shrink_translation_table(); /* once, too, and under the same lock */
	qemu.unlock();
	if (info == NULL || !parse(*(char **)info, id))
		return "the VM has no generation id";
	for (int i = 0; i < guest_memories; i++)
		if (guest_memory[i].length >= LEAST && find(&guest_memory[i], id))
			return NULL;
	return "the generation id is not found in the guest's memory";
}

/* In the child, when it has all its threads. */
const char *renew_generation(void)
{
	unsigned char id[ID];
	void *device;

	if (getrandom(id, sizeof id, 0) != sizeof id)
		return "there are no random numbers";
	qemu.lock(__FILE__, __LINE__);
	device = qemu.device("", "acpi-device-interface", NULL);
	if (device != NULL) {
		qemu.write(place, id, sizeof id, true);
		qemu.send(device, CHANGED);
	}
	qemu.unlock();
	return device != NULL ? NULL : "QEMU's ACPI device is not found";
}
