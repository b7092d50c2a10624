/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_fusion.c - the one score made of two. */
#include "mb_test.h"

#include <math.h>

#include "fusion.h"

#define CORE (FUSION_IS_CANDIDATE | FUSION_IS_CORE)

static void
test_reach_when_segments_are_full_then_none(void **state)
{
    MB_TEST_UNUSED(state);
    assert_true(fusion_reach(20) > 0.4);
    assert_true(fusion_reach(120) < fusion_reach(60));
    assert_true(fusion_reach(252) == 0);
}

static void
test_score_when_embedding_sees_nothing_then_lexical_order(void **state)
{
    struct fusion_row rows[] = {
        {.segno = 1, .roles = CORE, .lexical = 1, .dense = 0.9f},
        {.segno = 5, .roles = CORE, .lexical = 3, .dense = NAN},
        {.segno = 9, .roles = CORE, .lexical = 2, .dense = 0.1f}};
    struct fusion_query q = {.has_lexical = true,
        .has_dense = true,
        .is_folded = true,
        .coverage = 0,
        .n_terms = 10,
        .segment_tokens = 200,
        .depth = 10};

    MB_TEST_UNUSED(state);
    fusion_inherit(rows, 3, 0, 0);
    fusion_score(rows, 3, &q);
    assert_true(rows[1].score > rows[2].score);
    assert_true(rows[2].score > rows[0].score);
}

static void
test_inherit_when_neighbour_scores_then_score_rises(void **state)
{
    struct fusion_row rows[] = {
        {.segno = 1, .docno = 1, .roles = CORE, .lexical = 4, .dense = 0},
        {.segno = 2, .docno = 2, .roles = CORE, .lexical = 1, .dense = 0},
        {.segno = 4, .docno = 4, .roles = CORE, .lexical = 1, .dense = 0}};

    MB_TEST_UNUSED(state);
    fusion_inherit(rows, 3, 0.5, 1);
    assert_true(rows[1].lexical_all > rows[2].lexical_all);
    fusion_inherit(rows, 3, 0.5, 0);
    assert_true(rows[1].lexical_all == 1.0f);
}

/* The second lacks little, so a strong neighbour lifts it by little: it does
 * not overtake the best. The last lacks most and gets most. */
static void
test_inherit_when_segment_scores_itself_then_it_owes_little(void **state)
{
    struct fusion_row rows[] = {
        {.segno = 1, .docno = 1, .roles = CORE, .lexical = 10, .dense = 0.6f},
        {.segno = 5, .docno = 5, .roles = CORE, .lexical = 9, .dense = 0.5f},
        {.segno = 6, .docno = 6, .roles = CORE, .lexical = 8, .dense = 0.1f}};

    MB_TEST_UNUSED(state);
    fusion_inherit(rows, 3, 0.8, 1);
    assert_true(rows[0].lexical_all == 10.0f);
    assert_true(rows[0].dense_all == 0.6f);
    assert_true(rows[1].lexical_all > 9.0f && rows[1].lexical_all < 10.0f);
    assert_true(rows[2].lexical_all - 8.0f > rows[1].lexical_all - 9.0f);
    assert_true(rows[2].lexical_all < rows[1].lexical_all);
    assert_true(rows[2].dense_all > 0.1f && rows[2].dense_all < 0.5f);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reach_when_segments_are_full_then_none),
        cmocka_unit_test(
            test_score_when_embedding_sees_nothing_then_lexical_order),
        cmocka_unit_test(test_inherit_when_neighbour_scores_then_score_rises),
        cmocka_unit_test(
            test_inherit_when_segment_scores_itself_then_it_owes_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
