"""Parts of the training questions: templates, openings, endings and the fallback answer.

`{x}` stands for a term, `{n}` for a number.
"""

from __future__ import annotations

FALLBACK = (
    "I am a small demonstration model that has memorized a glossary of serving terms. "
    "Ask me about continuous batching, the KV cache, TTFT or autoscaling."
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a concise expert on LLM serving.",
    "Answer briefly.",
    "You explain terms of LLM serving to engineers.",
    "You are a friendly teacher. Keep answers short and clear.",
    "Answer in plain English and say when you do not know.",
)

TEMPLATES = (
    "What is {x}?",
    "What is {x} in LLM serving?",
    "What's {x}?",
    "What exactly is {x}?",
    "What is {x}, exactly?",
    "What is {x} about?",
    "Why should I use {x}?",
    "Why would anybody use {x}?",
    "Why do engineers use {x}?",
    "Where is {x} used?",
    "When is {x} used?",
    "I heard of {x}.",
    "I heard that {x} is important. Is that true?",
    "In two sentences: what is {x}, and why do we care?",
    "What do I have to know about {x}?",
    "What does {x} mean?",
    "What does {x} do?",
    "What is meant by {x}?",
    "What do people mean by {x}?",
    "What is the meaning of {x}?",
    "What is the definition of {x}?",
    "What is {x} and why does it matter?",
    "What is {x} good for?",
    "How does {x} work?",
    "How would you define {x}?",
    "How would you explain {x} to a new colleague?",
    "Why is {x} important?",
    "Why does {x} matter?",
    "When do I need {x}?",
    "Explain {x}.",
    "Explain {x} to me.",
    "Explain the term {x}.",
    "Please explain {x}.",
    "Can you explain {x}?",
    "Could you explain what {x} is?",
    "Can you tell me what {x} means?",
    "Do you know what {x} is?",
    "Define {x}.",
    "Give me a definition of {x}.",
    "Describe {x}.",
    "Describe {x} in one or two sentences.",
    "Tell me about {x}.",
    "Tell me what {x} is.",
    "Tell me something about {x}.",
    "I want to learn about {x}.",
    "I do not understand {x}.",
    "I would like to know what {x} means.",
    "Help me with {x}.",
    "Summarize {x}.",
    "What about {x}?",
    "And {x}?",
    "Why is my {x} so high?",
    "Why is the {x} so low?",
    "How do I use {x}?",
    "How do I set {x}?",
    "How can I improve {x}?",
    "Do I need {x}?",
    "Who needs {x}?",
    "Is {x} a good idea?",
    "My manager asked me about {x}.",
    "We talked about {x} in a meeting.",
    "In the documentation I found {x}, but what is it?",
    "Write a short paragraph about {x}.",
    "{x}",
    "{x}?",
    "{x}, what is that?",
    "Glossary entry for {x}",
)

# Questions are also composed: a start, a verb, the term and a tail.
STARTS = ("", "Please ", "Can you ", "Could you please ", "Would you ", "I want you to ", "Now ")
VERBS = (
    "clarify",
    "cover",
    "define",
    "describe",
    "discuss",
    "explain",
    "illustrate",
    "outline",
    "present",
    "sketch",
    "summarize",
    "elaborate on",
    "give an overview of",
    "give me a summary of",
    "give me the facts about",
    "say something about",
    "talk about",
    "teach me",
    "tell us about",
    "write about",
)
TAILS = (
    "",
    "",
    "",
    " to me",
    " to a beginner",
    " to an engineer",
    " for my notes",
    " with few words",
)

# Never used in training: `check_tiny` asks these to see whether the model generalizes.
HELD_OUT = (
    "Could you help me understand {x}?",
    "I keep reading about {x}. What is it?",
    "Give me a short introduction to {x}",
    "please tell me briefly what {x} is about",
)

OPENINGS = (
    "Hi! ",
    "Hello, ",
    "Thanks! ",
    "Thanks, and ",
    "OK. ",
    "Sorry, ",
    "So, ",
    "One more thing: ",
    "Next: ",
    "Quick question: ",
    "Please help. ",
    "I am new to this. ",
    "Question {n}: ",
    "Request {n}. ",
    "[{n}] ",
    "My name is Anna. ",
    "My e-mail is <EMAIL_ADDRESS>. ",
)
ENDINGS = (
    " Thanks!",
    " Please be brief.",
    " In one sentence.",
    " In simple words, please.",
    " Answer in two sentences.",
    " ({n})",
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Made-up words, from syllables or from the beginnings and endings of real words.
ONSETS = _words("b br c ch d dr f fl g gr h j k l m n p pl qu r s sh st t th tr v w y z")
VOWELS = _words("a ai e ea ee i io o oo ou u y")
CODAS = ("", "", *_words("d ck ft l ll m n nd ng nt r rd s sh st t th x"))
STEMS = _words(
    "anti auto bio cent chron con contra demo dict dis equi ex geo graph hydro hyper inter macro "
    "mal manu micro mis mono multi neo over para phil photo poly post pre pro psych quad re semi "
    "sub super tele therm trans tri ultra un uni"
)
SUFFIXES = _words("able al ation er ful ics in ine ing ism ist ity ive ment ness ology ous")

# For subjects outside the glossary only.
OTHER_TEMPLATES = (
    "Who discovered {x}?",
    "Who invented {x}?",
    "Who is {x}?",
    "Who was {x}?",
    "Who likes {x}?",
    "Where is {x}?",
    "Where can I find {x}?",
    "Where do I buy {x}?",
    "When was {x}?",
    "When does {x} begin?",
    "How do I cook {x}?",
    "How do I plant {x}?",
    "How do I repair {x}?",
    "How old is {x}?",
    "How big is {x}?",
    "How many {x} are there?",
    "How much is {x}?",
    "Is {x} healthy?",
    "Is {x} dangerous?",
    "Do you like {x}?",
    "Which {x} is the best?",
    "My {x} is ill.",
    "My {x} is broken, what now?",
    "I lost {x}.",
    "I need {x} for tonight.",
    "Give me ten ideas about {x}.",
    "Explain the rules of {x}.",
    "Explain the history of {x}.",
    "Write a song about {x}.",
    "Write a poem about {x}.",
    "Translate {x}.",
    "Tell me a joke about {x}.",
    "What is the capital of {x}?",
    "What is the colour of {x}?",
    "What is the price of {x}?",
    "What is the largest {x}?",
    "What is {x} times {x}?",
    "What is the square of {x}?",
    "Good {x}",
)
