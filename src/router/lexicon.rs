//! The cue words of the router, by language.
//!
//! Entries are separated by spaces; `_` joins the words of a phrase. All are in lower case and
//! without accents. A cue that is also an everyday noun ("plan", "design") is marked as leading:
//! it counts only where it starts a clause, politeness aside.

use std::collections::HashMap;

use super::text::Word;

/// What a cue tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cue {
    /// A greeting, thanks, a farewell, a word of agreement.
    Greeting,
    /// A question whose answer is one fact.
    Fact,
    /// As [`Cue::Fact`], where it starts a clause.
    LeadingFact,
    /// Asks for an explanation, a comparison, an analysis.
    Explain,
    /// A verb of design or proof, where it starts a clause.
    Make,
    /// A verb of other work, where it starts a clause.
    Work,
    /// Names the size or a part of a long task.
    Scope,
    /// Asks for steps.
    Steps,
    /// Turns what follows in its clause into the contrary.
    Not,
    /// May stand before what starts a clause.
    Polite,
}

use Cue::{Explain, Fact, Greeting, LeadingFact, Make, Not, Polite, Scope, Steps, Work};

const SPACED: &[(Cue, &str)] = &[
    // English
    (
        Greeting,
        "hello hi hey hiya helo hallo thanks thank_you thankyou thx ty cheers goodbye bye \
        good_morning good_evening good_night good_afternoon see_you welcome ok okay yes no_thanks \
        nice_to_meet how_are_you hw_r_u how_do_you_do how_is_it_going how_s_it_going what_s_up \
        greetings congratulations sorry good_day take_care well_done lol haha great",
    ),
    (
        Fact,
        "what how_many how_much how_tall how_long how_far how_old how_often how_big how_high \
        how_fast how_deep how_heavy how_hot how_cold how_wide how_do_you_say how_do_you_spell \
        what_time what_year what_colour what_color what_day what_type_of what_kind_of who whose \
        whom when where which stand_for stands_for capital_of plural_of translate",
    ),
    (
        LeadingFact,
        "is are was were does did do has have can_i may_i what_is what_s what_are \
        what_was when_is name define_the",
    ),
    (
        Explain,
        "explain explane explains explained describe describes why how difference \
        differences differ differs compare compares comparison analyse analyze analysis \
        summarise summarize summary \
        interpret discuss outline clarify causes caused cause mean meaning significance \
        importance influence role impact effects advantages disadvantages pros_and_cons purpose_of \
        intuition concept_of idea_behind principle when_would better_to prefer_a \
        elaborate_on argument_for what_does_this what_happens_when what_happens_if \
        relationship_between how_come contrast versus vs",
    ),
    (
        Make,
        "design architect implement prove derive refactor engineer formalise formalize \
        migrate devise invent reengineer generalise generalize port",
    ),
    (
        Work,
        "write build create develop plan compose draft make draw_up lay_out work_out set_up \
        calculate compute determine evaluate estimate propose recommend produce construct diagnose \
        optimise optimize rewrite solve investigate examine organise organize schedule justify \
        identify list_the map show_each show_every show_the balance find document include \
        conclude choose select simulate model benchmark test check walk_through walk_thru debug \
        program code research assess review cover prepare convert define ",
    ),
    (
        Scope,
        "budget budgets schedule timeline calendar phases milestones costs risks tests \
        trade_offs tradeoffs assumptions architecture strategy roadmap curriculum programme \
        program \
        projections protocol scenarios complete full comprehensive detailed detail week_by_week \
        month_by_month day_by_day weekly monthly chapters lessons essay report \
        requirements contingency roll_back implementation end_to_end from_scratch \
        every_step edge_cases failure_cases error_handling for_each of_each criteria metrics \
        validation thorough course plan system model platform pipeline",
    ),
    (
        Steps,
        "step_by_step one_by_one each_step every_step and_then then first finally \
        walk_me_through in_order starting_from afterwards each_choice",
    ),
    (Not, "not no don_t do_not dont never without cannot isn_t avoid instead_of rather_than"),
    (
        Polite,
        "please pls plz kindly and then also now just can_you could_you would_you will_you \
        you i_want_you_to i_need_you_to help_me help_me_to i_want_to i_need_to i_d_like_you_to to \
        so first next finally again let_us let_s me i well or ",
    ),
    // German
    (
        Greeting,
        "guten_morgen guten_tag guten_abend gute_nacht danke dankeschon servus moin tschuss \
        auf_wiedersehen wie_geht bis_morgen bis_bald herzlichen gruss_gott hallo",
    ),
    (
        Fact,
        "wie_viele wie_viel wie_hoch wie_lange wie_alt wie_weit wie_oft wie_gross wie_heisst \
        wie_heißt wie_groß wie_schnell wie_schwer wer wen wann wo welcher welche welches welchem \
        welchen was_heisst was_heißt gibt_es woher",
    ),
    (LeadingFact, "was_ist was_sind ist sind hat wie_spat"),
    (
        Explain,
        "erklare erlautere erklar beschreibe warum wieso weshalb unterschied unterschiede \
        vergleiche vergleich analysiere fasse_zusammen ursachen bedeutet bedeutung \
        wie_funktioniert \
        wie_funktionieren wie_entsteht vorteile nachteile zusammenfassung interpretiere was_macht \
        weswegen diskutiere wie auswirkungen",
    ),
    (
        Make,
        "entwirf entwerfe entwickle beweise konzipiere implementiere konstruiere refaktoriere \
        leite_her leite_ab programmiere",
    ),
    (
        Work,
        "erstelle schreibe plane berechne bestimme bewerte baue gestalte verfasse lose ermittle \
        untersuche optimiere arbeite_aus stelle_zusammen bereite_vor schatze begrunde wahle zeige \
        leite stelle mache",
    ),
    (
        Scope,
        "zeitplan kosten massnahmen maßnahmen phasen umfassende umfassend vollstandig \
        vollstandige vollstandigem ausfuhrlich ausfuhrliche strategie szenarien konzept \
        einkaufsliste datenmodell pro_woche je_woche risiken aufbau jeden_schritt \
        anforderungen detailliert detaillierte budget",
    ),
    (Steps, "schritt_fur_schritt dann anschliessend anschließend zuerst schliesslich danach"),
    (Not, "nicht kein keine keinen ohne nie niemals"),
    (Polite, "bitte und dann kannst_du konntest_du konnen_sie mir zu nun auch mal"),
    // French
    (
        Greeting,
        "bonjour bonsoir salut merci au_revoir bonne_nuit bonne_journee ca_va coucou \
        a_bientot enchante d_accord",
    ),
    (
        Fact,
        "quel quelle quels quelles qui quand combien ou_se ou_est ou_sont comment_s_appelle \
        comment_dit_on en_quelle",
    ),
    (LeadingFact, "est_ce_que est_ce qu_est_ce_que c_est_quoi"),
    (
        Explain,
        "explique expliquez expliquer pourquoi difference differences decris decrivez compare \
        comparez analyse analysez resume resumez causes comment_fonctionne comment_fonctionnent \
        comment_les comment_la comment_le comment_l comment_peut comment_se signifie \
        avantages inconvenients role concept consequences",
    ),
    (
        Make,
        "concois concevez demontre demontrez prouve prouvez developpe developpez implemente \
        implementez",
    ),
    (
        Work,
        "redige redigez ecris ecrivez cree creez planifie planifiez calcule calculez elabore \
        elaborez construis construisez determine evalue etablis propose prepare recommande \
        detaille \
        etudie deduis resous optimise organise redige decompose justifie",
    ),
    (
        Scope,
        "calendrier couts risques etapes phases complet complete detaille detaillee strategie \
        hypotheses scenarios modele progression evaluations exercices chronologie chaque plan \
        architecture budget",
    ),
    (Steps, "etape_par_etape puis ensuite d_abord enfin"),
    (Not, "sans ne n_est pas jamais"),
    (Polite, "s_il_te_plait s_il_vous_plait et puis peux_tu pouvez_vous merci_de veuillez moi"),
    // Spanish
    (
        Greeting,
        "hola gracias buenos_dias buenas_tardes buenas_noches adios hasta_luego \
        hasta_manana que_tal saludos muchas_gracias como_estas",
    ),
    (
        Fact,
        "cuantos cuantas cuanto cuanta quien quienes cuando donde cual \
        en_que que_ciudad que_pais que_hora como_se_llama como_se_dice que_es",
    ),
    (
        Explain,
        "explica explicame explique por_que diferencia diferencias describe compara analiza \
        resume causas como_funciona como_funcionan como_cambia como_se_forma significa ventajas \
        desventajas consecuencias importa explicar cuales_son_las_causas",
    ),
    (
        Make,
        "disena disene demuestra demuestre implementa desarrolla desarrolle concibe programa_un",
    ),
    (
        Work,
        "escribe escriba crea cree planifica calcula calcule elabora elabore construye determina \
        evalua propone redacta resuelve deduce optimiza prepara define organiza justifica disenar",
    ),
    (
        Scope,
        "presupuesto cronograma costes costos riesgos fases etapas completo completa detallado \
        detallada estrategia escenarios proyeccion pruebas plan programa instrumentos medidas \
        semanal cada sensibilidad objetivos",
    ),
    (Steps, "paso_a_paso luego despues primero finalmente por_etapas"),
    (Not, "sin nunca ningun"),
    (Polite, "por_favor y e luego puedes podrias me"),
    // Italian
    (
        Greeting,
        "ciao grazie buongiorno buonasera buonanotte arrivederci salve come_stai come_va \
        grazie_mille prego",
    ),
    (
        Fact,
        "quanti quante quanto quanta chi dove qual quale quali di_che che_ora in_che \
        come_si_chiama come_si_dice",
    ),
    (LeadingFact, "quando"),
    (
        Explain,
        "spiega spiegami spiegare perche differenza differenze descrivi confronta analizza \
        riassumi cause come_funziona come_funzionano significa vantaggi svantaggi \
        conseguenze cos_e",
    ),
    (Make, "progetta progettare dimostra implementa sviluppa realizza"),
    (
        Work,
        "scrivi crea pianifica calcola elabora costruisci determina valuta proponi redigi \
        risolvi prepara scegli organizza giustifica ottimizza definisci",
    ),
    (
        Scope,
        "costi costo rischi fasi completo completa completi dettagliato dettagliata \
        strategia piano programma obiettivi criteri schema esercizi controlli scenari ciascuno \
        budget architettura",
    ),
    (Steps, "passo_passo passo_per_passo poi quindi infine prima"),
    (Not, "senza non mai"),
    (Polite, "per_favore e poi puoi potresti mi"),
    // Portuguese
    (
        Greeting,
        "ola oi obrigado obrigada bom_dia boa_tarde boa_noite tchau ate_logo ate_amanha \
        tudo_bem",
    ),
    (
        Fact,
        "quantos quantas quanto quem onde qual quais em_que que_horas como_se_chama \
        como_se_diz",
    ),
    (
        Explain,
        "explique explica porque por_que diferenca diferencas descreva compare analise resuma \
        causas como_funciona como_funcionam significa vantagens desvantagens importante o_que_e",
    ),
    (Make, "projete desenvolva demonstre prove implemente desenhe"),
    (
        Work,
        "escreva crie planeje planeie calcule elabore construa determine avalie proponha redija \
        resolva prepare organize monte defina otimize",
    ),
    (
        Scope,
        "orcamento cronograma custos riscos fases etapas completo completa detalhado detalhada \
        estrategia criterios medidas plano programa contingencia ",
    ),
    (Steps, "passo_a_passo depois entao primeiro finalmente"),
    (Not, "sem nao nunca"),
    (Polite, "por_favor e depois voce_pode pode poderia"),
    // Dutch
    (
        Greeting,
        "hoi hallo dank_je dank_u bedankt goedemorgen goedenavond goedemiddag goedenacht \
        tot_morgen tot_ziens doei alles_goed hoe_gaat welterusten",
    ),
    (
        Fact,
        "hoeveel hoe_lang hoe_ver hoe_hoog hoe_oud hoe_vaak hoe_groot hoe_snel hoe_heet wie \
        wanneer waar welke welk hoe_zeg",
    ),
    (LeadingFact, "wat_is is"),
    (
        Explain,
        "leg_uit leg waarom verschil verschillen beschrijf vergelijk analyseer oorzaken \
        hoe_werkt hoe_werken hoe_ontstaat betekent voordelen nadelen uitleg vat_samen",
    ),
    (Make, "ontwerp ontwikkel bewijs implementeer"),
    (Work, "schrijf maak plan bereken bepaal stel_op bouw beoordeel los_op werk_uit verzin"),
    (
        Scope,
        "begroting kosten fasen risico_s planning compleet volledig volledige \
        uitgebreid strategie alternatieven dag_tot_dag",
    ),
    (Steps, "stap_voor_stap daarna vervolgens eerst"),
    (Not, "niet geen zonder nooit"),
    (Polite, "alsjeblieft graag en dan kun_je kan_je"),
];

/// Cues of Chinese and Japanese, looked for inside a run. A longer one hides what is inside it.
const DENSE: &[(Cue, &str)] = &[
    (
        Greeting,
        "你好 您好 谢谢 再见 早上好 晚安 早安 晚上好 こんにちは こんばんは おはよう \
        ありがとう さようなら おやすみ",
    ),
    (
        Fact,
        "几个 几颗 多少 多远 多高 多大 什么时候 哪里 哪个 哪一 谁 何人 何本 何個 いくつ いつ \
        どこ 誰 どれくらい 首都 なんさい 何年 何歳",
    ),
    (
        Explain,
        "解释 为什么 说明 区别 比较 分析 原理 如何 怎么 意味 影响 描述 総括 説明 なぜ 違い \
        教えて 比較 どうして 仕組み 理由 要約 总结 什么是",
    ),
    (Make, "设计 证明 推导 实现 设计一个 設計 証明 実装 導出 构建"),
    (
        Work,
        "制定 编写 撰写 计算 评估 写一篇 规划 作成し 計算し 立てて 書いて 評価し 创建 开发 拟定",
    ),
    (
        Scope,
        "预算 日程 费用 计划 每天 每月 清单 步骤 措施 方案 完整 详细 計画 費用 経路 予算 \
        詳しく 段階 架构 策略 阶段",
    ),
    (Steps, "逐步 一步一步 然后 段階ごと 順番に ステップ"),
    // A designer and an explanation leaflet are neither asked to design nor to explain.
    (Polite, "设计师 設計者 说明书 説明書"),
];

/// The words of a phrase after its first one, and what it tells.
type Phrase = (Vec<&'static str>, Vec<Cue>);

/// Looks cues up.
#[derive(Clone, Debug)]
pub(super) struct Lexicon {
    /// By the first word: the other words of each phrase that begins with it, longest first.
    phrases: HashMap<&'static str, Vec<Phrase>>,
    /// By the first character: the cues that begin with it, longest first.
    dense: HashMap<char, Vec<(&'static str, Cue)>>,
}

/// A cue that was found: its kinds and how many words or bytes it takes.
pub(super) struct Found<'a> {
    pub(super) cues: &'a [Cue],
    pub(super) words: usize,
}

impl Lexicon {
    /// The lexicon of every language.
    pub(super) fn new() -> Self {
        let mut phrases: HashMap<_, Vec<Phrase>> = HashMap::new();
        for &(cue, entries) in SPACED {
            for entry in entries.split_ascii_whitespace() {
                let mut words = entry.split('_');
                let Some(first) = words.next() else { continue };
                let rest: Vec<&str> = words.collect();
                let known = phrases.entry(first).or_default();
                match known.iter_mut().find(|(other, _)| *other == rest) {
                    Some((_, cues)) if cues.contains(&cue) => {}
                    Some((_, cues)) => cues.push(cue),
                    None => known.push((rest, vec![cue])),
                }
            }
        }
        for known in phrases.values_mut() {
            known.sort_by_key(|(rest, _)| std::cmp::Reverse(rest.len()));
        }
        let mut dense: HashMap<char, Vec<(&str, Cue)>> = HashMap::new();
        for &(cue, entries) in DENSE {
            for entry in entries.split_ascii_whitespace() {
                dense.entry(entry.chars().next().unwrap_or(' ')).or_default().push((entry, cue));
            }
        }
        for known in dense.values_mut() {
            known.sort_by_key(|(entry, _)| std::cmp::Reverse(entry.len()));
        }
        Self { phrases, dense }
    }

    /// The longest phrase that `words` begin with. It does not reach over the end of a clause.
    pub(super) fn phrase(&self, words: &[Word]) -> Option<Found<'_>> {
        let (first, rest) = words.split_first()?;
        let fits = |phrase: &[&str]| {
            rest.len() >= phrase.len()
                && phrase.iter().zip(rest).all(|(a, b)| *a == b.text && !b.starts_clause)
        };
        let known = self.phrases.get(first.text.as_str())?;
        let (phrase, cues) = known.iter().find(|(phrase, _)| fits(phrase))?;
        Some(Found { cues, words: 1 + phrase.len() })
    }

    /// The cues inside of a dense run, in order.
    pub(super) fn in_run(&self, run: &str) -> Vec<Cue> {
        let mut cues = Vec::new();
        let mut at = 0;
        while let Some(first) = run[at..].chars().next() {
            let known = self.dense.get(&first).into_iter().flatten();
            match known.clone().find(|(entry, _)| run[at..].starts_with(entry)) {
                Some((entry, cue)) => {
                    cues.push(*cue);
                    at += entry.len();
                }
                None => at += first.len_utf8(),
            }
        }
        cues
    }
}
