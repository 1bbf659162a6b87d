// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * QEMU finds translated code by a hash table of 64 bytes a bucket, which doubles when one in eight buckets has
 * overflowed. What a child translates changes a bucket anywhere in the table for each block, so all of its pages
 * become the child's own before long: a table of half the size is 2 MB less for each VM, and costs a second
 * look for every twentieth block. So the zygote has it, and has it stay so; a child that throws all translations
 * away, as it has used the whole buffer up and begins anew with a small table, has it grow as ever.
 */
#include "zygote.h"

#include <dlfcn.h>
#include <string.h>

enum {
	BLOCKS = 1 << 17, /* for which the table has buckets, of 4 blocks each */
	AUTO_RESIZE = 1,  /* QHT_MODE_AUTO_RESIZE, include/qemu/qht.h */
	ROOM = 512,       /* more than a struct qht */
};

static bool never(const void *a, const void *b)
{
	(void)a, (void)b;
	return false;
}

static char *table;     /* of the child; NULL: it is as QEMU has it */
static long mode_at;
static unsigned flushes;

/* Where a table holds its mode: the one word in which two that are equal otherwise differ so. */
static long find_mode(void (*init)(void *, void *, size_t, unsigned), void (*destroy)(void *))
{
	static _Alignas(16) char with[ROOM], without[ROOM];
	unsigned a, b;
	long found = -1;

	init(with, never, 4, AUTO_RESIZE);
	init(without, never, 4, 0);
	for (long at = 0; at < ROOM && found < 0; at += sizeof a) {
		memcpy(&a, with + at, sizeof a);
		memcpy(&b, without + at, sizeof b);
		if (a == AUTO_RESIZE && b == 0)
			found = at;
	}
	destroy(with);
	destroy(without);
	return found;
}

/* What follows the table in QEMU's TBContext: how often all was thrown away. */
static unsigned count_flushes(void)
{
	unsigned count;

	memcpy(&count, table + mode_at + 2 * sizeof count, sizeof count);
	return count;
}

static void set_mode(unsigned mode) { memcpy(table + mode_at, &mode, sizeof mode); }

/* To be called with QEMU's lock held. A QEMU that does not export this keeps its table. */
void halve_translation_table(void)
{
	void (*init)(void *, void *, size_t, unsigned), (*destroy)(void *);
	bool (*resize)(void *, size_t);
	char *context = dlsym(RTLD_DEFAULT, "tb_ctx"); /* which begins with the table */
	unsigned mode;

	*(void **)&init = dlsym(RTLD_DEFAULT, "qht_init");
	*(void **)&destroy = dlsym(RTLD_DEFAULT, "qht_destroy");
	*(void **)&resize = dlsym(RTLD_DEFAULT, "qht_resize");
	if (context == NULL || init == NULL || destroy == NULL || resize == NULL || (mode_at = find_mode(init, destroy)) < 0)
		return;
	memcpy(&mode, context + mode_at, sizeof mode);
	if (mode != AUTO_RESIZE)
		return;
	table = context;
	set_mode(0);
	resize(table, BLOCKS);
	flushes = count_flushes();
}

/* Called by a child's main loop. */
void watch_translations(void)
{
	if (table == NULL || count_flushes() == flushes)
		return;
	set_mode(AUTO_RESIZE);
	table = NULL;
}
