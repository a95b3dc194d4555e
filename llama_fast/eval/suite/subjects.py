"""Names of the tasks that make up MMLU, BBH, MATH and AGIEval in lm-eval."""

__all__ = ["AGIEVAL", "BBH", "MATH", "MMLU"]

# The 57 subjects; the task of a subject is "mmlu_" and its name.
MMLU = tuple(
    """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology
    college_chemistry college_computer_science college_mathematics college_medicine
    college_physics computer_security conceptual_physics econometrics electrical_engineering
    elementary_mathematics formal_logic global_facts high_school_biology high_school_chemistry
    high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology
    high_school_statistics high_school_us_history high_school_world_history human_aging
    human_sexuality international_law jurisprudence logical_fallacies machine_learning
    management marketing medical_genetics miscellaneous moral_disputes moral_scenarios
    nutrition philosophy prehistory professional_accounting professional_law
    professional_medicine professional_psychology public_relations security_studies sociology
    us_foreign_policy virology world_religions
    """.split()
)

_BBH = tuple(
    """
    boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages
    formal_fallacies geometric_shapes hyperbaton logical_deduction_five_objects
    logical_deduction_seven_objects logical_deduction_three_objects movie_recommendation
    multistep_arithmetic_two navigate object_counting penguins_in_a_table
    reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks
    sports_understanding temporal_sequences tracking_shuffled_objects_five_objects
    tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects
    web_of_lies word_sorting
    """.split()
)
BBH = tuple(f"bbh_fewshot_{name}" for name in _BBH)

MATH = (
    "minerva_math_algebra",
    "minerva_math_counting_and_prob",
    "minerva_math_geometry",
    "minerva_math_intermediate_algebra",
    "minerva_math_num_theory",
    "minerva_math_prealgebra",
    "minerva_math_precalc",
)

# The English multiple-choice sets; the group that holds them is agieval_nous.
AGIEVAL = (
    "agieval_aqua_rat",
    "agieval_logiqa_en",
    "agieval_lsat_ar",
    "agieval_lsat_lr",
    "agieval_lsat_rc",
    "agieval_sat_en",
    "agieval_sat_en_without_passage",
    "agieval_sat_math",
)
