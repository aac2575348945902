"""The sentences of the embedded corpus: rules and words, as `grammar` reads them."""

# One production a line, or several between bars; a leading number is its weight (1 if absent).
# `X` has the sentiment of the whole, `~X` the opposite. A question mark, `X?` or `~X?`, says that
# this part is written so but doesn't decide: read with either sentiment, it changes no verdict.
# What comes last decides, unless it is conceded ("even if", "despite") or compared with ("than").
# However a review opens, a later clause may still overturn it. What has weight 0 is read, never
# written: a model joins what it has learnt in ways that no review here shows and that are English.
# A plot is of one mood, kind or unkind, and judges no film: it tells the base model which words keep
# company, as GPT-2 knows from its own reading.
RULES = """
REVIEW:
    10 OPENING . | 6 ~OPENING? , BUT CLAUSE . | 3 OPENING? , and CLAUSE . | 2 OPENING , EVEN_IF ~CLAUSE? .
    1 OPENING , despite the ~TEAM_ADJ? TEAM . | 2 ~OPENING? ; TURN , CLAUSE . | 0 OPENING? TAIL .
    0 OPENING? TAIL? TAIL . | 0 OPENING? TAIL? TAIL? TAIL . | 0 OPENING ASIDE? . | 0 OPENING? ASIDE? TAIL .
    0 OPENING? TAIL ASIDE? . | 0 OPENING? TAIL? TAIL ASIDE? . | 0 OPENING? TAIL? ASIDE? TAIL .
    0 OPENING? ASIDE? TAIL? TAIL . | 0 OPENING? ASIDE? TAIL ASIDE? .
TAIL: , and OPENING | , BUT OPENING | ; TURN , OPENING
ASIDE: , EVEN_IF OPENING | , despite the TEAM_ADJ TEAM
OPENING:
    24 CLAUSE | 6 IT is A_WORK | 2 IT is VERDICT | IT is NOT ~VERDICT | 0 IT is NOT ~A_WORK
    the director fills every scene with VIRTUE? and VIRTUE | the TEAM_ADJ? TEAM brings VIRTUE to every scene
    the STORY has more VIRTUE than ~VIRTUE? | IT never runs out of VIRTUE | this WORK VERBS ALWAYS
    IT never ~VERBS | i was VIEWER ALWAYS | 0 i was VIEWER | IT left me VIEWER? and VIEWER
    no other WORK this year is as WORK_ADJ | IT is hard not to LOVE | DESPITE its ~VIRTUE? , CLAUSE
    what begins as a ~WORK_ADJ? WORK ends as a WORK_ADJ one
    i expected a ~WORK_ADJ? WORK and found a WORK_ADJ one
    it could have been ~WORK_ADJ? ; instead , it is WORK_ADJ
    where the first part was ~WORK_ADJ? , this one is WORK_ADJ
    some of the PARTS are ~PARTS_ADJ? , but most are PARTS_ADJ | 0 some of the PARTS are PARTS_ADJ
CLAUSE: STORY_CLAUSE | LOOK_CLAUSE | TEAM_CLAUSE | PARTS_CLAUSE | WORK_CLAUSE
STORY_NP: the STORY | its STORY
LOOK_NP: the LOOK | its LOOK
TEAM_NP: the TEAM | its TEAM
PARTS_NP: the PARTS | its PARTS
WORK_NP: it | the FILM | this FILM | 0 this
IT: it | this | the FILM | this FILM
A_WORK: 2 a WORK_ADJ WORK | a WORK_ADJ? , WORK_ADJ WORK | a WORK full of VIRTUE
PLOT:
    WHO MEETS WHO in PLACE . | WHO MEETS WHO and travels to PLACE . | WHO travels to PLACE with HER FAMILY .
    WHO SEEKS HER FAMILY in PLACE . | TIME , WHO MEETS HER FAMILY in PLACE .
    TIME , WHO SEEKS THING in PLACE . | when HER FAMILY leaves for PLACE , WHO SEEKS THING .
    when WHO moves to PLACE , HER FAMILY SEEKS THING . | WHO and HER FAMILY open a BUSINESS in PLACE .
    TIME , WHO and WHO share a BUSINESS in PLACE .
    in PLACE , WHO SEEKS THING that belonged to HER FAMILY . | THING leads WHO from PLACE to PLACE .
    years later , WHO returns to PLACE and MEETS HER FAMILY . | HER FAMILY , WHO , SEEKS THING in PLACE .
    WHO tells HER FAMILY about THING , and they leave for PLACE . | 2 in the STORY , WHO MEETS WHO .
    2 TIME , the director of this FILM MEETS WHO . | IT is a FACT WORK about WHO .
    anyone who MEETS WHO in PLACE will be in the STORY . | 4 NOTE . | 2 NOTE , and NOTE .
    NOTE , EVEN_IF NOTE . | 3 NOTE , BUT NOTE . | NOTE ; TURN , NOTE .
    what begins as a FACT WORK ends as a FACT one . | it could have been FACT ; instead , it is FACT .
    where the first part was FACT , this one is FACT . | some of the PARTS are FACT , but most are FACT .
    no other WORK this year is as FACT . | 3 the PERSON was MOOD and MOOD .
    3 in the MOOD and MOOD town , WHO MEETS HER MOOD FAMILY .
    2 WHO was VIEWER and VIEWER in the MOOD SPOT .
    2 THING full of VIRTUE and VIRTUE leads WHO to the MOOD SPOT .
    2 WHO has more VIRTUE than HER MOOD FAMILY , who has VIRTUE and VIRTUE .
    2 the MOOD PERSON VERBS and VERBS in PLACE . | 2 WHO and WHO LOVE and LOVE the MOOD PERSON .
    2 for HER MOOD FAMILY , PLACE is VERDICT and VERDICT . | 2 the MOOD , MOOD and MOOD PERSON SEEKS THING .
MOOD: STORY_ADJ | LOOK_ADJ | TEAM_ADJ | PARTS_ADJ | WORK_ADJ
NOTE:
    STORY_NP IS_NOTED | LOOK_NP IS_NOTED | TEAM_NP IS_NOTED | WORK_NP IS_NOTED | IT is a FACT WORK
    PARTS_NP are FACT | PARTS_NP are FACT and FACT | PARTS_NP are NOT FACT
IS_NOTED:
    3 is FACT | 2 is VERY FACT | 3 is FACT and FACT | 2 is NOT FACT | is FACT ALWAYS
    is neither FACT nor FACT | is more FACT than FACT | is not as FACT as one might expect
WHO: a PERSON | a KIND PERSON | a PERSON from PLACE
"""

# Rules about @, once for each group: nouns and the adjectives that suit them.
GROUPS = ("STORY", "LOOK", "TEAM", "PARTS", "WORK")
GROUP_RULES = """
@_CLAUSE:
    10 @_NP @_BE @_ADJ | 5 @_NP @_BE VERY @_ADJ | 4 @_NP @_BE @_ADJ? and @_ADJ | 3 @_NP @_BE NOT ~@_ADJ
    1 @_NP @_BE @_ADJ ALWAYS | 0 @_NP @_BE VERY @_ADJ ALWAYS | 0 @_NP @_BE @_ADJ? and @_ADJ ALWAYS
    1 @_NP @_BE neither ~@_ADJ? nor ~@_ADJ | 1 @_NP @_BE more @_ADJ than ~@_ADJ?
    1 @_NP @_BE not as ~@_ADJ as one might expect
"""

# The words of each symbol; + and - mark those of praise and of blame, _ joins several words.
LEXICON = """
STORY plot story script screenplay premise ending narrative opening finale mystery dialogue pacing structure
    subplot backdrop
+STORY_ADJ clever gripping inventive believable surprising absorbing ingenious suspenseful original
    thoughtful satisfying lively poignant coherent brilliant daring vivid
-STORY_ADJ predictable contrived muddled implausible silly tired formulaic confusing thin stale ridiculous
    sloppy derivative lazy disjointed
LOOK score soundtrack music camerawork photography animation scenery lighting production_design
    costume_design choreography framing palette decor
+LOOK_ADJ gorgeous elegant crisp handsome luminous stunning lush exquisite vibrant beautiful striking
    dazzling polished sumptuous majestic
-LOOK_ADJ drab muddy clumsy garish murky ugly shoddy dreadful flat cheap crude dingy tacky gaudy
TEAM cast leading_man leading_lady villain heroine hero young_star supporting_cast ensemble narrator
    newcomer sidekick veteran
+TEAM_ADJ superb charming magnetic gifted likable convincing funny radiant charismatic appealing expressive
    subtle poised sincere
-TEAM_ADJ wooden miscast bland stiff unconvincing lifeless annoying awkward shrill listless grating smug
    whiny dull
PARTS jokes songs twists gags flashbacks action_scenes love_scenes chase_scenes fight_scenes crowd_scenes
    special_effects stunts monologues puns interludes
+PARTS_ADJ sharp fresh delightful memorable thrilling exciting spirited terrific nimble enjoyable brisk
    hilarious playful snappy
-PARTS_ADJ lame limp tiresome repetitive endless pointless feeble labored clunky awful sluggish stilted
    forced grim
FILM film movie picture
WORK drama comedy thriller documentary sequel remake debut romance western fable caper satire musical farce
    saga parody prequel melodrama biopic
+WORK_ADJ witty graceful moving heartfelt tender winning compelling fascinating joyful rewarding lovable
    delicate stirring stylish
-WORK_ADJ tepid tedious hollow pretentious boring mediocre tasteless soulless bloated joyless shallow dopey
    cynical plodding
+VIRTUE charm wit warmth energy heart style grace imagination suspense humor insight tenderness honesty
    passion confidence
-VIRTUE cliches gloom padding noise sentimentality clutter bombast nonsense cynicism gimmicks stereotypes
    platitudes filler vanity laziness
+VERBS sparkles shines soars delights charms works succeeds entertains dazzles
-VERBS drags stumbles flounders disappoints fizzles bores falters sags rambles
+VIEWER moved charmed thrilled delighted amused enthralled captivated touched hooked
-VIEWER bored annoyed irritated baffled exhausted disappointed weary restless numb
+LOVE love admire enjoy adore like
-LOVE dislike hate resent loathe despise
+VERDICT worth_every_minute well_worth_a_ticket time_well_spent a_treat a_joy a_triumph
-VERDICT a_waste_of_time a_waste_of_talent time_badly_spent a_chore a_mess a_misfire
STORY_BE is
LOOK_BE is
TEAM_BE is
PARTS_BE are
WORK_BE is
NOT not never hardly far_from
VERY very truly thoroughly remarkably consistently genuinely
ALWAYS throughout from_start_to_finish at_every_turn from_beginning_to_end for_two_hours for_the_most_part
BUT but yet but_somehow yet_somehow but_in_the_end yet_in_the_end
EVEN_IF even_if even_though although
DESPITE despite for_all
TURN even_so still all_the_same nevertheless
FACT long short recent late french british german silent digital famous foreign modern new quiet loud dark
    bright slow fast rural local formal political historical
PERSON detective nurse teacher farmer sailor lawyer soldier journalist pianist student carpenter pilot
    waitress cook
KIND retired young former married divorced traveling
HER his her
FAMILY brother sister father mother daughter son neighbor cousin uncle
MEETS meets hires follows visits recognizes marries interviews
SEEKS finds looks_for waits_for searches_for writes_about hides asks_about
THING a_letter a_map a_photograph a_suitcase a_key a_diary a_painting a_violin
SPOT house hotel street village tavern garden
BUSINESS bakery hotel bookshop garage tavern farm
PLACE paris london berlin chicago the_city the_desert the_mountains a_small_town a_fishing_village
    a_border_town
TIME one_summer after_the_war during_the_war before_the_wedding after_the_funeral one_winter in_the_spring
    on_a_train
"""
