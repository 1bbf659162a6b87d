// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * QEMU finds translated code by a hash table of 64 bytes a bucket, which doubles when one in eight buckets has
 * overflowed. What a child translates changes a bucket anywhere in the table for each block, so all of its pages
 * become the child's own before long, and a page more for each bucket that is continued elsewhere. So the zygote makes
 * the table small, and its chains such that the ends of all, where what is new is written, lie side by side; and has it stay so.
 * A child that throws all translations away, as it has used the whole buffer up, begins anew with a table that grows as ever.
 */
#include "zygote.h"

#include <dlfcn.h>
#include <string.h>

/* util/qht.c */
enum { ENTRIES = 4 };

struct bucket {
	uint32_t lock, sequence, hashes[ENTRIES];
	void *pointers[ENTRIES];
	struct bucket *next; /* when this one is full */
};

struct map {
	void *rcu[2];
	struct bucket *buckets;
	size_t count;
};

_Static_assert(sizeof(struct bucket) == BUCKET, "a bucket is as large as a line of the processor's cache");

enum {
	BUCKETS = 1 << 13, /* which a third as many blocks would fill */
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

/* Whether tables are made as it is written above: of one whose only bucket is continued. */
static bool known(void (*init)(void *, void *, size_t, unsigned), void (*destroy)(void *), bool (*insert)(void *, void *, uint32_t, void **))
{
	static _Alignas(16) char table[ROOM];
	static char blocks[2 * ENTRIES - 1];
	struct map *map;
	struct bucket *b;
	bool same;

	init(table, never, ENTRIES, 0);
	for (size_t i = 0; i < sizeof blocks; i++)
		insert(table, &blocks[i], i + 1, NULL);
	memcpy(&map, table, sizeof map);
	same = map->count == 1;
	b = map->buckets;
	for (size_t i = 0; same && i < sizeof blocks; i++) {
		if (i == ENTRIES)
			b = b->next;
		same = b != NULL && b->hashes[i % ENTRIES] == i + 1 && b->pointers[i % ENTRIES] == &blocks[i];
	}
	same = same && b->hashes[ENTRIES - 1] == 0 && b->pointers[ENTRIES - 1] == NULL && b->next == NULL;
	destroy(table);
	return same;
}

/* The last bucket of each chain is put beside those of all others. */
static void gather_ends(void)
{
	struct map *map;
	struct bucket *ends;

	memcpy(&map, table, sizeof map);
	ends = take_buckets(map->count * sizeof *ends);
	for (size_t i = 0; ends != NULL && i < map->count; i++) {
		struct bucket *b = &map->buckets[i];

		if (b->next == NULL)
			continue;
		while (b->next->next != NULL)
			b = b->next;
		ends[i] = *b->next;
		b->next = &ends[i];
	}
}

/* What follows the table in QEMU's TBContext: how often all was thrown away. */
static unsigned count_flushes(void)
{
	unsigned count;

	memcpy(&count, table + mode_at + 2 * sizeof count, sizeof count);
	return count;
}

static void set_mode(unsigned mode) { memcpy(table + mode_at, &mode, sizeof mode); }

/* To be called with QEMU's lock held, when no processor runs. A QEMU that is not made so keeps its table. */
void shrink_translation_table(void)
{
	void (*init)(void *, void *, size_t, unsigned), (*destroy)(void *);
	bool (*resize)(void *, size_t), (*insert)(void *, void *, uint32_t, void **);
	char *context = dlsym(RTLD_DEFAULT, "tb_ctx"); /* which begins with the table */
	unsigned mode;

	*(void **)&init = dlsym(RTLD_DEFAULT, "qht_init");
	*(void **)&destroy = dlsym(RTLD_DEFAULT, "qht_destroy");
	*(void **)&resize = dlsym(RTLD_DEFAULT, "qht_resize");
	*(void **)&insert = dlsym(RTLD_DEFAULT, "qht_insert");
	if (context == NULL || init == NULL || destroy == NULL || resize == NULL || insert == NULL)
		return;
	if ((mode_at = find_mode(init, destroy)) < 0 || !known(init, destroy, insert))
		return;
	memcpy(&mode, context + mode_at, sizeof mode);
	if (mode != AUTO_RESIZE || !open_buckets())
		return;
	table = context;
	set_mode(0);
	resize(table, BUCKETS * ENTRIES);
	gather_ends();
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
