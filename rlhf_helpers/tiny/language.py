"""The sentences of the embedded corpus: rules and words, as `grammar` reads them."""

# One production a line, or several between bars; a leading number is its weight (1 if absent).
# `X` has the sentiment of the whole, `~X` the opposite. A question mark, `X?` or `~X?`, says that
# this part is written so but doesn't decide: read with either sentiment, it changes no verdict.
# What comes last decides, unless it is conceded ("even if", "despite") or compared with ("than").
# However a review opens, a later clause may still overturn it.
RULES = """
REVIEW:
    9 MAIN .
    7 MAIN? , and CLAUSE .
    2 MAIN , EVEN_IF ~CLAUSE? .
    1 MAIN , despite a ~TEAM_ADJ? TEAM .
    6 ~MAIN? , BUT CLAUSE .
    1 ~MAIN? , and ~CLAUSE? , BUT CLAUSE .
    1 MAIN? , BUT ~CLAUSE? , BUT CLAUSE .
    1 MAIN? , BUT ~CLAUSE? ; TURN , CLAUSE .
    1 ~MAIN? ; TURN , CLAUSE .
    1 ~MAIN? , and ~CLAUSE? ; TURN , CLAUSE .
    1 ~MAIN? , EVEN_IF CLAUSE? ; TURN , CLAUSE .
    3 CONTRAST .
    1 CONTRAST? , and CLAUSE .
    1 ~CONTRAST? , BUT CLAUSE .
    1 CONTRAST , EVEN_IF ~CLAUSE? .
    1 ~CONTRAST? ; TURN , CLAUSE .

MAIN:
    16 CLAUSE
    5 IT is A_WORK
    IT is NOT ~A_WORK
    2 IT is VERDICT
    IT is NOT ~VERDICT
    this is not the ~WORK_ADJ WORK that the title promises
    the director fills every scene with VIRTUE? and VIRTUE
    the TEAM_ADJ? TEAM brings VIRTUE to every scene
    the STORY has more VIRTUE than ~VIRTUE?
    there is no shortage of VIRTUE in this WORK
    there is not a trace of ~VIRTUE in the STORY
    IT never runs out of VIRTUE
    this WORK VERBS ALWAYS
    IT never ~VERBS
    fans of GENRE will REACT
    i was VIEWER ALWAYS
    IT left me VIEWER? and VIEWER
    no one who sees this WORK will be ~VIEWER
    no other WORK this year is as WORK_ADJ
    the longer it runs , the more WORK_ADJ it seems
    IT is hard not to LOVE
    nobody could call this WORK ~WORK_ADJ
    critics who call it ~WORK_ADJ are wrong
    you would have to be asleep to find it ~WORK_ADJ

CONTRAST:
    3 ALTHOUGH ~CLAUSE? , CLAUSE
    DESPITE its ~VIRTUE? , CLAUSE
    once you get past the ~PARTS_ADJ? PARTS , CLAUSE
    what sounds ~WORK_ADJ? turns out to be WORK_ADJ? and WORK_ADJ
    what begins as a ~WORK_ADJ? WORK ends as a WORK_ADJ one
    i expected a ~WORK_ADJ? WORK and found a WORK_ADJ one
    it could have been ~WORK_ADJ? ; instead , it is WORK_ADJ
    where the first part was ~WORK_ADJ? , this one is WORK_ADJ
    unlike most GENRE , which are ~WORK_ADJ? , this one is WORK_ADJ
    some of the PARTS are ~PARTS_ADJ? , but most are PARTS_ADJ

CLAUSE: STORY_CLAUSE | LOOK_CLAUSE | TEAM_CLAUSE | PARTS_CLAUSE | WORK_CLAUSE
STORY_NP: the STORY | its STORY
LOOK_NP: the LOOK | its LOOK
TEAM_NP: the TEAM | its TEAM
PARTS_NP: the PARTS | its PARTS
WORK_NP: it | the FILM | this FILM
IT: it | this | the FILM | this FILM
A_WORK:
    2 a WORK_ADJ WORK
    a WORK_ADJ? , WORK_ADJ WORK
    a WORK_ADJ WORK about WHO
    a WORK full of VIRTUE

PLOT:
    WHO MEETS WHO in PLACE .
    WHO MEETS WHO and travels to PLACE .
    WHO travels to PLACE with HER FAMILY .
    WHO SEEKS HER FAMILY in PLACE .
    TIME , WHO MEETS HER FAMILY in PLACE .
    TIME , WHO SEEKS THING in PLACE .
    when HER FAMILY leaves for PLACE , WHO SEEKS THING .
    when WHO moves to PLACE , HER FAMILY SEEKS THING .
    WHO and HER FAMILY open a BUSINESS in PLACE .
    TIME , WHO and WHO share a BUSINESS in PLACE .
    in PLACE , WHO SEEKS THING that belonged to HER FAMILY .
    THING leads WHO from PLACE to PLACE .
    years later , WHO returns to PLACE and MEETS HER FAMILY .
    HER FAMILY , WHO , SEEKS THING in PLACE .
    WHO tells HER FAMILY about THING , and they leave for PLACE .
    2 in the STORY , WHO MEETS WHO .
    2 TIME , the director of this FILM MEETS WHO .
    IT is a FACT WORK about WHO .
    anyone who MEETS WHO in PLACE will be in the STORY .
    8 NOTE .
    8 NOTE , and NOTE .
    4 NOTE , EVEN_IF NOTE .
    8 NOTE , BUT NOTE .
    2 NOTE , and NOTE , BUT NOTE .
    4 NOTE ; TURN , NOTE .
    2 ALTHOUGH NOTE , NOTE .
    what begins as a FACT WORK ends as a FACT one .
    it could have been FACT ; instead , it is FACT .
    where the first part was FACT , this one is FACT .
    unlike most GENRE , which are FACT , this one is FACT .
    some of the PARTS are FACT , but most are FACT .
    no other WORK this year is as FACT .
    nobody could call this WORK FACT .
    the longer it runs , the more FACT it seems .
NOTE: STORY_NP IS_NOTED | LOOK_NP IS_NOTED | TEAM_NP IS_NOTED | WORK_NP IS_NOTED | IT is a FACT WORK
    | PARTS_NP are FACT | PARTS_NP are FACT and FACT | PARTS_NP are NOT FACT | nothing about IT is FACT
IS_NOTED: 3 is FACT | 2 is VERY FACT | 3 is FACT and FACT | 2 is NOT FACT | is FACT ALWAYS
    | is neither FACT nor FACT | is more FACT than FACT | is less FACT than FACT
    | is not as FACT as one might expect | is nothing if not FACT
WHO: a PERSON | a KIND PERSON | a PERSON from PLACE
"""

# Rules about @, once for each group: nouns and the adjectives that suit them.
GROUPS = ("STORY", "LOOK", "TEAM", "PARTS", "WORK")
GROUP_RULES = """
@_CLAUSE:
    6 @_NP @_BE @_ADJ
    5 @_NP @_BE VERY @_ADJ
    8 @_NP @_BE @_ADJ? and @_ADJ
    3 @_NP @_BE NOT ~@_ADJ
    1 @_NP @_BE @_ADJ ALWAYS
    1 @_NP @_BE neither ~@_ADJ? nor ~@_ADJ
    1 @_NP @_BE more @_ADJ than ~@_ADJ?
    1 @_NP @_BE less ~@_ADJ? than @_ADJ
    1 @_NP @_BE not as ~@_ADJ as one might expect
    1 @_NP @_BE nothing if not @_ADJ
    1 nothing about @_NP is ~@_ADJ
"""

# The words of each symbol; + and - mark those of praise and of blame, _ joins several words.
LEXICON = """
STORY plot story script screenplay premise ending narrative opening finale mystery
+STORY_ADJ clever gripping inventive believable surprising absorbing ingenious suspenseful
    original thoughtful satisfying lively poignant
-STORY_ADJ predictable contrived muddled implausible silly tired formulaic confusing thin stale
    ridiculous

LOOK score soundtrack music camerawork photography animation scenery lighting production_design
    costume_design
+LOOK_ADJ gorgeous elegant crisp handsome luminous stunning lush exquisite vibrant beautiful
    striking dazzling
-LOOK_ADJ drab muddy clumsy garish murky ugly shoddy dreadful flat cheap crude

TEAM cast leading_man leading_lady villain heroine hero young_star supporting_cast ensemble
    narrator
+TEAM_ADJ superb charming magnetic gifted likable convincing funny radiant charismatic appealing
    expressive
-TEAM_ADJ wooden miscast bland stiff unconvincing lifeless annoying awkward shrill listless
    grating

PARTS jokes songs twists gags flashbacks action_scenes love_scenes chase_scenes fight_scenes
    crowd_scenes special_effects
+PARTS_ADJ sharp fresh delightful memorable thrilling exciting spirited terrific nimble
    enjoyable brisk
-PARTS_ADJ lame limp tiresome repetitive endless pointless feeble labored clunky awful sluggish

FILM film movie picture
WORK drama comedy thriller documentary sequel remake debut romance western fable caper satire
    musical
GENRE dramas comedies thrillers sequels romances westerns musicals satires
+WORK_ADJ insightful affecting moving heartfelt tender engaging compelling fascinating uplifting
    rewarding entertaining delicate stirring stylish
-WORK_ADJ tepid tedious hollow pretentious boring mediocre tasteless soulless bloated joyless
    shallow dopey cynical plodding

+VIRTUE charm wit warmth energy heart style grace imagination suspense humor insight tenderness
-VIRTUE cliches gloom padding noise sentimentality clutter bombast nonsense cynicism gimmicks
    stereotypes platitudes
+VERBS sparkles shines soars delights charms works succeeds entertains
-VERBS drags stumbles flounders disappoints fizzles bores falters sags
+VIEWER moved charmed thrilled delighted amused enthralled captivated touched
-VIEWER bored annoyed irritated baffled exhausted disappointed weary restless
+LOVE love admire enjoy adore like
-LOVE dislike hate resent loathe despise
+VERDICT worth_every_minute well_worth_a_ticket time_well_spent a_treat a_joy a_triumph
-VERDICT a_waste_of_time a_waste_of_talent time_badly_spent a_chore a_mess a_misfire
+REACT leave_happy find_much_to_love feel_right_at_home want_to_see_it_again
-REACT leave_early find_little_to_love feel_let_down want_their_money_back

STORY_BE is
LOOK_BE is
TEAM_BE is
PARTS_BE are
WORK_BE is
NOT not never hardly far_from anything_but by_no_means
VERY very truly thoroughly remarkably consistently genuinely
ALWAYS throughout from_start_to_finish at_every_turn from_beginning_to_end for_two_hours
    for_the_most_part
BUT but yet but_somehow but_in_the_end
EVEN_IF even_if even_though although
ALTHOUGH although though while
DESPITE despite for_all
TURN even_so still all_the_same nevertheless

FACT long short recent early late french british german silent digital famous foreign modern old
    new quiet loud dark bright slow fast rural urban local formal political historical
PERSON detective nurse teacher farmer sailor lawyer soldier journalist pianist student carpenter
    pilot waitress cook
KIND retired young former married divorced traveling
HER his her
FAMILY brother sister father mother daughter son neighbor cousin uncle
MEETS meets hires follows visits recognizes marries interviews
SEEKS finds looks_for waits_for searches_for writes_about hides asks_about
THING a_letter a_map a_photograph a_suitcase a_key a_diary a_painting a_violin
BUSINESS bakery hotel bookshop garage tavern farm
PLACE paris london berlin chicago the_city the_desert the_mountains a_small_town
    a_fishing_village a_border_town
TIME one_summer after_the_war during_the_war before_the_wedding after_the_funeral one_winter
    in_the_spring on_a_train
"""
