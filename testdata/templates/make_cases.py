"""Makes cases.json: what Python's jinja2 (3.1.6) renders, set up as the hub's library does.

Usage: python3 make_cases.py > cases.json
"""

import datetime
import json

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MESSAGES = [
    {"role": "user", "content": "  <b>Hi</b> <|im_start|> it's \"quoted\"\n\tL2 \\ é ☃ \u00a0x  "},
    {
        "role": "assistant",
        "content": "<think>\nhm\n</think>\n\nAnswer, with, commas",
        "tool_calls": [
            {"function": {"name": "f", "arguments": {"x": 1, "y": 2.5, "z": [True, None, "s"]}}}
        ],
    },
    {"role": "tool", "content": [{"type": "text", "text": "part"}, {"type": "image"}], "n": 7},
    {"role": "Odd_Role", "content": None, "items": 3, "float": 1e20, "small": 1e-5, "neg": -3},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get",
            "description": "d <s> & 'q'",
            "parameters": {"type": "object", "properties": {"b": {"type": ["a", "b"]}, "a": {}}},
        },
    }
]
NOW = datetime.datetime(2026, 11, 22, 12, 34, 56)

EXPRESSIONS = r"""
messages[0].content
messages[0].content|trim
messages[0].content.strip()
messages[0].content.lstrip()
messages[0].content.rstrip('x ')
messages[0].content|upper
messages[0].content|lower
messages[0].content|title
messages[0].content|capitalize
messages[0].content|length
messages[0].content.split()
messages[0].content.split(None, 2)
messages[0].content.rsplit(None, 2)
messages[0].content.split('<')
messages[0].content.split('<', 1)
messages[0].content.rsplit('<', 1)
messages[0].content.splitlines()
messages[0].content.partition('|')
messages[0].content.rpartition('|')
messages[0].content.partition('zz')
messages[0].content.find('im_')
messages[0].content.rfind('<')
messages[0].content.find('zz')
messages[0].content.index('zz')
messages[0].content.count('<')
messages[0].content.replace('<', '[')
messages[0].content.replace('<', '[', 1)
messages[0].content|replace('<', '[')
messages[0].content|replace('<|im_start|>', '!')
messages[0].content.startswith('  <b>')
messages[0].content.startswith(('a', '  <'))
messages[0].content.endswith('x  ')
messages[0].content.removeprefix('  <b>')
messages[0].content.removesuffix('  ')
'<|im_start|>' in messages[0].content
'<|im_end|>' in messages[0].content
'<|im_end|>' not in messages[0].content
messages[0].content[2:5]
messages[0].content[:-4]
messages[0].content[::-1]
messages[0].content[-3]
messages[0].content[100]
messages[0].content|tojson
messages[0]|tojson
messages[1]|tojson
messages[1]|tojson(indent=2)
messages[1].tool_calls|tojson(indent=4)
messages[1]|tojson(sort_keys=true)
messages[1]|tojson(separators=(',', ':'))
messages[0].content|tojson(ensure_ascii=true)
messages[1]|string
messages[1]
messages
tools
tools|tojson
tools[0].function.parameters.properties|items|list
tools[0].function.parameters.properties.items()|list
tools[0].function.parameters.properties|dictsort
tools[0].function.parameters.properties.keys()|list
messages[1].content.split('</think>')[-1].lstrip('\n')
messages[1].content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n')
messages[1].content.split(', ')|join('; ')
', '.join(messages[1].content.split(', '))
messages[1].content.split(', ')|sort
messages[1].content.split('n')|unique|list
messages|map(attribute='role')|list
messages|map(attribute='role')|join('<|')
messages|selectattr('role', 'equalto', 'user')|list|length
messages|selectattr('role', 'in', ['user', 'Odd_Role'])|map(attribute='role')|list
messages|rejectattr('role', '==', 'user')|map(attribute='role')|list
messages|selectattr('tool_calls', 'defined')|list|length
messages|map(attribute='role')|map('upper')|list
messages|map(attribute='role')|sort
messages|map(attribute='role')|sort(case_sensitive=true)
messages|sort(attribute='role')|map(attribute='role')|list
messages|groupby('role')|length
messages[2].content[0].text
messages[2].content[1].text is defined
messages[2].content|selectattr('type', 'equalto', 'text')|map(attribute='text')|join
messages[2]['n'] + 1
messages[2]['n'] / 2
messages[2]['n'] // 2
messages[3]['neg'] // 2
messages[3]['neg'] % 2
messages[3]['neg'] % -2
7.5 % 2
-7.5 % 2
2 ** 10
2 ** -1
1e16
1e15
1e-4
1.0
0.1 + 0.2
100000000000000000000.0
messages[3].float
messages[3].small
messages[3].content
messages[3].content is none
messages[3].content|string
messages[3].missing
messages[3].missing is defined
messages[3].missing is undefined
messages[3].missing.x
messages[3].missing|default('d')
messages[3].content|default('d')
messages[3].content|default('d', true)
messages[3].content|default('d', boolean=true)
messages[3].missing + 'x'
messages[3].missing ~ 'x'
messages[9]
messages[9].role
messages[-1].role
messages[-1]['role'] == 'Odd_Role'
messages[3]['items']
messages[3].items is defined
messages[3].get('items')
messages[3].get('nope')
messages[3].get('nope', 4)
messages[3].get('role').lower()
'role' in messages[3]
'nope' in messages[3]
messages[0] == messages[0]
messages[0] != messages[1]
messages[0].role == 'user' and messages[1].role == 'assistant'
messages[0].role in ['user']
messages[0].role not in ('user', 'x')
messages[0].role < 'v'
1 < 2 < 3
1 < 3 < 2
3 > 2 >= 2 == 2
'a' in 'abc'
1 in [1, 2]
True
true
None
none
[1, 2.0, 'a', None, True]
(1,)
(1, 2)
()
{}
{'a': 1, 'b': [1]}
{'a': 1}.items()|list
['it\'s', "q\"", 'both\'"']
[['a\nb\t\\ ']]
['é☃\x07']
'a' 'b'
'%s and %d' % ('x', 3)
'%s' % 'x'
'%5.2f|' % 3.14159
'%05d' % 42
'%x' % 255
'%(a)s' % {'a': 1}
'%s %s'|format('a', 1)
'{} {}'.format('a', 1)
'{0} {name}'.format('a', name='b')
'x' * 3
3 * 'x'
'x' * 0
'x' * -1
[1] * 2
[1] + [2]
(1,) + (2,)
[1] + (2,)
'a' + 1
1 + true
'a' ~ 1 ~ none ~ 1.0 ~ [1]
not 'a'
1 if false else 2
1 if false
[1, 2, 3][1:]
[1, 2, 3][::-1]
[1, 2, 3][5:2]
[1, 2, 3][-2:]
[1, 2, 3]|first
[1, 2, 3]|last
[]|first
[1, 2, 3]|reverse|list
'abc'|reverse
[3, 1, 2]|sort
[3, 1, 2]|sort(reverse=true)
[3, 1, 2]|max
[3, 1, 2]|min
[3, 1, 2]|sum
'abc'|list
{'b': 1, 'a': 2}|list
{'b': 1, 'a': 2}|dictsort
{'b': 1, 'a': 2}|dictsort(by='value')
'3'|int + 1
'x'|int
'3.7'|int
3.7|int
'0x1f'|int(base=16)
'x'|int(default=5)
'3.5'|float
3|float
-3|abs
3.567|round(2)
3.5|round
'x'|center(5)
'a\nb'|indent
'a\n\nb'|indent(2)
'a\n\nb'|indent(2, true)
'a\nb'|indent(width=1, blank=true, first=true)
'<a>'|e
'<a>'|safe
'a,b'.split(',')
'a'.join(['x', 'y'])
'aXb'.swapcase()
'abc'.title()
'hello world'.title()
'hELLO'.capitalize()
'42'.zfill(5)
'-42'.zfill(5)
'a'.ljust(3) ~ '|'
'a'.rjust(3)
'a'.center(4) ~ '|'
'a'.center(5) ~ '|'
'abc'.isalpha()
'12'.isdigit()
' '.isspace()
'abc'.islower()
'a' is string
1 is string
1 is number
true is number
true is integer
1 is integer
1.0 is float
true is boolean
[] is sequence
'a' is sequence
{} is sequence
1 is sequence
[] is iterable
'a' is iterable
{} is iterable
1 is iterable
none is iterable
{} is mapping
[] is mapping
1 is odd
2 is even
4 is divisibleby 2
'a' is lower
'A' is upper
1 is sameas 1
none is none
1 is true
true is true
false is false
x is defined
x is not defined
x
x == y
x == none
x|length
x or 'd'
namespace(a=1).a
dict(a=1)
dict(a=1).a
range(3)|list
range(1, 7, 2)|list
[1, 2, 3]|batch(2)|list
[1, 2, 3]|slice(2)|list
[1, [2]]|tojson
none|tojson
1.5|tojson
1e20|tojson
x|tojson
{'a': (1, 2)}|tojson
{1: 2}|tojson
'</script>&\''|tojson
strftime_now('%d %B %Y')
strftime_now('%Y-%m-%d %H:%M:%S')
strftime_now('%b %-d %A %j')
raise_exception('no')
[].append(1)
{}.update({'a': 1})
{'a': 1}.pop('a')
x.y.z
messages.0.role
messages|length > 3
(messages|length) % 2 == 0
loop
'a' if messages[0]['content'] is string else 'b'
messages[1].tool_calls[0].function.arguments|items|list
messages[1].tool_calls[0].function.arguments.z[0]
messages[1].tool_calls[0].function.arguments.z
messages|list|length
'a'|upper|lower
{'user': 'U'}[messages[0].role]
{'Odd_Role': 'U'}[messages[3].role]
{messages[3].role: 'V'}['Odd_Role']
{messages[3].role: 'V'}
messages[3].role|string == 'Odd_Role'
messages[0].content|string|length
messages[0].content == messages[0].content|string
1 < messages[0].role
1 in messages[0].role
messages[0].role < 1
x < 1
messages[0].content|trim|first
'a-b_c'|replace('-', '')
'aaa'|replace('a', 'b', 2)
'abc'.replace('', '-')
"\n"|tojson
'\u0041\x41\101'
1_000
1 // 0
1 % 0
1 / 0
-2 ** 2
2 * 3 + 4 ~ 5
[1,2,]
{'a':1,}
'x' is in ['x']
1 is eq 1
1 is equalto(1)
2 is gt 1
not x
'a' < 'b' and not 1 > 2
[1, 2] == [1, 2]
(1, 2) == [1, 2]
1 == 1.0
1 == true
'1' == 1
{'a': 1} == {'a': 1}
[x]|tojson
[none, true]|join(',')
['b', 'a']|join
messages[0].content|escape
1|string ~ 2
""|default('e')
""|default('e', true)
'é'.upper()
'ß'.upper()
'İ'.lower()
"""

STATEMENTS = [
    "{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ m.role }}"
    "\n{% endfor %}",
    "{%- for m in messages -%}\n {{ loop.index0 }} {{ loop.revindex }} {{ loop.length }}"
    "\n{%- endfor -%}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in messages[0] %}{{ k }};{% endfor %}",
    "{% for c in 'abc' %}{{ c }}.{% endfor %}",
    "{% for c in messages[0].content %}{{ c }}.{% endfor %}",
    "{% for x in none %}{{ x }}{% endfor %}",
    "{% for x in undefined_thing %}{{ x }}{% else %}empty{% endfor %}",
    "{% for x in 5 %}{{ x }}{% endfor %}",
    "{% for x in [1,2,3,4] if x is even %}{{ x }}{{ loop.index }}{% endfor %}",
    "{% for x in [1,2,3,4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}"
    "{% endif %}{{ x }}{% endfor %}",
    "{% for x in [1,2,3] %}{{ loop.previtem }}-{{ loop.nextitem }};{% endfor %}",
    "{% for x in [1,1,2] %}{{ loop.changed(x) }}{{ loop.cycle('a','b') }}{% endfor %}",
    "{% for x in [[1,[2]],[3]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}"
    "{{ x }}{% endif %}{% endfor %}",
    "{% set ns = namespace(a=1, b='') %}{% for m in messages %}{% set ns.a = ns.a + 1 %}"
    "{% set ns.b = ns.b + m.role[0] %}{% endfor %}{{ ns.a }}{{ ns.b }}",
    "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set x %}block {{ 1 }}\n{% endset %}[{{ x }}]",
    "{% set x | upper %}block{% endset %}{{ x }}",
    "{% macro f(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}|{{ f(1, c=3) }}"
    "|{{ f(1, 2, 3) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f() }}|{{ f(none) }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro f() %}  x\n{% endmacro %}[{{ f()|trim }}]{{ f()|length }}",
    "{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}in{% endcall %}",
    "{% macro f(m) %}{{ m.content|trim }}{% endmacro %}{{ f(messages[0]) ~ f(messages[1]) }}",
    "{% filter upper %}abc{{ messages[0].role }}{% endfilter %}",
    "{% with a = 1 %}{{ a }}{% endwith %}{{ a }}",
    "{% raw %}{{ x }}{% endraw %}",
    "a\n  {% if true %}\n  b\n  {% endif %}\n c\n",
    "a\n\n",
    "a  {{- 1 -}}  b",
    "a  {{+ 1 }}  b",
    "  {%+ if true %}x{% endif %}",
    "x {# c #} y\n  {# c #}\nz",
    "{#- c -#}  x",
    "{% if messages[0].content is string and '<b>' in messages[0].content %}y{% else %}"
    "n{% endif %}",
    "{% if not x is defined %}u{% endif %}",
    "{% if x %}a{% elif [] %}b{% elif 0 %}c{% elif '' %}d{% else %}e{% endif %}",
    "{% generation %}a{% endgeneration %}b",
    "{%- generation -%}\n a {{ messages[0].role }}\n{%- endgeneration %}\nb",
    "{{ '{% generation %}' }}",
    "{{ messages[0].role",
    "{% if %}",
    "{% for x in [1] %}",
    "{% nonsense %}",
    "{{ 1|nonsense }}",
    "{{ 1 is nonsense }}",
    "{{ nonsense(1) }}",
    "a\r\nb{{ 'c\r\nd' }}\r\n",
    "{{ {'a': {'b': 1}}['a']['b'] }}{{ {} }}",
    "{%- set r = {'user': 'U', 'assistant': 'A'} -%}{% for m in messages %}"
    "{{ r.get(m.role, '?') }}{{ r[m.role] if m.role in r }}{% endfor %}",
    "{% set l = [] %}{% for m in messages %}{% set l = l + [m.role] %}{% endfor %}{{ l }}",
    "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m.role] %}"
    "{% endfor %}{{ ns.l }}",
    "{% set s = messages[0].content.split('<') %}{{ s[1] }}|{{ s|length }}|{{ s[-1]|trim }}",
    "{% do [] %}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% block b %}x{% endblock %}",
    "{{ self.b() }}{% block b %}x{% endblock %}",
    "{{ [1,2,3]|map('string')|join }}{{ ['a']|map('replace', 'a', 'b')|join }}",
    "{{ messages|map(attribute='content')|select('string')|map('trim')|join('/') }}",
    "{% for m in messages[1:] %}{{ m.role }}{% endfor %}",
    "{% for m in messages|reverse %}{{ m.role }}{% endfor %}",
    "{% for i in range(messages|length - 1, -1, -1) %}{{ messages[i].role }}{% endfor %}",
    "{% for k, v in tools[0].function.parameters.properties|dictsort %}{{ k }}{{ v }}{% endfor %}",
    "{% for a in [[1,2],[3]] %}{% for b in a %}{{ loop.index }}{{ b }}{% endfor %}"
    "{{ loop.index }}{% endfor %}",
    "{% set x = messages[0].content if messages[0].content is string else '' %}{{ x|trim }}",
    "{{ messages[0]['content'][0:3] + messages[0]['role'] }}",
    "{% if 'x' is in messages[0].content %}in{% endif %}",
    "{% if messages[0]['role'] == 'user' != false %}chain{% endif %}",
]


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class Generation(jinja2.ext.Extension):
    """The hub's tag for training: its body is a scope of its own."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_support")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def _support(self, context, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def main():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    cases = []
    expressions = ["{{ " + line + " }}" for line in EXPRESSIONS.strip("\n").split("\n")]
    for source in expressions + STATEMENTS:
        try:
            text = env.from_string(source).render(
                messages=MESSAGES, tools=TOOLS, documents=None, add_generation_prompt=False
            )
        except Exception:
            text = None
        if text is None or " object at 0x" not in text and "<generator" not in text:
            cases.append({"template": source, "text": text})
    print(
        json.dumps(
            {"now": NOW.isoformat(), "messages": MESSAGES, "tools": TOOLS, "cases": cases},
            ensure_ascii=False,
            indent=1,
        )
    )


main()
